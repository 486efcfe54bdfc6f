"""Labels of any column as class numbers: one rule for lists, tables, arrays and data sets."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from temi.cache.schema import CacheError

MAX_NUMBER = 2**20  # whole numbers below this are class numbers already; if any is not, all are names
UNKNOWN = (None, "", -1, "-1")


def number_labels(
    values: Sequence[object], *, order: Callable[[str], Any] = str
) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Label of each value, and the names of the classes.

    Whole numbers from 0 on are labels as they are, also as floats, which a missing value makes of them, unless one is
    MAX_NUMBER or more, or any value is text: then all are names, numbered by `order`. None, NaN, empty text and -1 are
    unknown: label -1.

    Raises
    ------
    CacheError
        A number is not whole, or is below -1: no class is meant.
    """
    plain = [_plain(value) for value in values]
    numbers = [value for value in plain if isinstance(value, int)]
    if min(numbers, default=0) < 0:
        raise CacheError(f"label {min(numbers)} is no class; number classes from 0, with -1 where unknown")
    texts = {value for value in plain if isinstance(value, str)}
    if not texts and max(numbers, default=0) < MAX_NUMBER:
        labels = np.array([-1 if value is None else value for value in plain], np.int32)
        return labels, tuple(str(number) for number in range(max(numbers, default=-1) + 1))
    names = sorted(texts | set(map(str, numbers)), key=order if texts else int)
    index = {name: number for number, name in enumerate(names)}
    return np.array([-1 if value is None else index[str(value)] for value in plain], np.int32), tuple(names)


def renumbered(labels: npt.NDArray[np.int32], classes: Sequence[str], numbers: Sequence[str]) -> npt.NDArray[np.int32]:
    """`labels` of `classes` as positions in `numbers`, which holds them all; unknown ones stay -1."""
    number = {name: position for position, name in enumerate(numbers)}
    table = np.array([*(number[name] for name in classes), -1], dtype=np.int32)  # label -1 is the last
    found: npt.NDArray[np.int32] = table[labels]
    return found


def _plain(value: object) -> int | str | None:
    """A whole number, a name, or None where the class is unknown."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        if np.isnan(value):
            return None
        if not value.is_integer():
            raise CacheError(f"label {value} is not one number or name of a class; give whole numbers or names")
        value = int(value)
    if value in UNKNOWN:
        return None
    return value if isinstance(value, int) else str(value)
