"""What sources share: the order of names, the digest of a list, splits and labels told from names or values."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Int32

from temi.pipeline.errors import UserError

SPLITS = ("train", "val", "validation", "test")


def natural_key(name: str) -> tuple[object, ...]:
    """Sort key of a posix path: part by part, digits by value, ties by the text itself; independent of the locale."""
    parts = name.split("/")
    return (*(tuple(_chunk(chunk) for chunk in re.split(r"([0-9]+)", part) if chunk) for part in parts), (), *parts)


def _chunk(text: str) -> tuple[int, int, str]:
    return (0, int(text), "") if "0" <= text[0] <= "9" else (1, 0, text)


def digest(keys: list[str], sizes: Iterable[int]) -> str:
    """Identifies an ordered list of images by name and size in bytes, not by times or place."""
    state = xxhash.xxh3_128()
    for key, size in zip(keys, sizes, strict=True):
        state.update(f"{key}\0{size}\n".encode())
    return state.hexdigest()


def file_size(path: Path) -> int:
    """Bytes of a file for `digest`; 0 where there is none, whose row is unreadable."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def path_splits(paths: list[list[str]]) -> dict[str, tuple[int, int]]:
    """Row range of each split, if all of the top folders are called train, val, validation or test."""
    tops = [path[0].lower() if len(path) > 1 else "" for path in paths]
    if not set(tops) <= set(SPLITS):
        return {}
    rows = {top: [row for row, other in enumerate(tops) if other == top] for top in dict.fromkeys(tops)}
    ranges = {top: (members[0], members[-1] + 1) for top, members in rows.items()}
    contiguous = all(stop - start == len(rows[top]) for top, (start, stop) in ranges.items())
    return ranges if contiguous else {}  # "Train" beside "train" may interleave: then they are no splits


def path_labels(paths: list[list[str]]) -> tuple[Int32[np.ndarray, " N"], tuple[str, ...]]:
    """Labels and classes, if every image lies directly in one of two or more folders; else all -1 and none."""
    names = sorted({path[0] for path in paths}, key=natural_key)
    if any(len(path) != 2 for path in paths) or len(names) < 2:
        return np.full(len(paths), -1, np.int32), ()
    index = {name: position for position, name in enumerate(names)}
    return np.array([index[path[0]] for path in paths], np.int32), tuple(names)


def value_labels(values: Sequence[object]) -> tuple[Int32[np.ndarray, " N"], tuple[str, ...]]:
    """Labels and classes of a column: whole numbers are labels already, other values are names; None is unknown."""
    known = {value for value in values if value is not None and value != ""}
    if known and all(isinstance(value, int) and 0 <= value < 2**20 for value in known):
        numbers = [value if isinstance(value, int) else -1 for value in values]
        return np.array(numbers, np.int32), tuple(str(number) for number in range(max(numbers) + 1))
    names = sorted({str(value) for value in known}, key=natural_key)
    index = {name: position for position, name in enumerate(names)}
    return np.array([index.get(str(value), -1) for value in values], np.int32), tuple(names)


def value_splits(values: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Row range of each split, from one name per row in which equal names are neighbors; none for a single split."""
    names = list(dict.fromkeys(values))
    firsts = [values.index(name) for name in names]
    return dict(zip(names, zip(firsts, [*firsts[1:], len(values)], strict=True), strict=True)) if len(names) > 1 else {}


def refuse_twins(keys: Sequence[str], where: object) -> None:
    """Raise UserError if two rows have the same key: an assignment could not be told from the other's."""
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twin = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UserError(f"{where} names {twin} twice; remove one of the two")
