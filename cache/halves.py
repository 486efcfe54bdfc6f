"""The one check of embeddings that enter: what float16 cannot hold is refused, whichever door it comes through."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from temi.cache.schema import CacheError, Half

BLOCK_ROWS = 4096  # measured at a time, in float64
MOST_LOST = 1e-3
"""Share of a row's norm that rounding may take. float16 takes 5e-4 at most, unless values are below 6e-5."""


MEND = "multiply all embeddings by one number, e.g. so that their norms are about 1, or remove that row"


def to_halves(values: npt.NDArray[Any], name: Callable[[int], str], mend: str = MEND) -> Half:
    """Embeddings (n, ...) of any float type, as float16.

    Parameters
    ----------
    name
        What row i is called in a refusal, e.g. "the embedding of a.jpg (row 3)".
    mend
        What can be done, to end the refusal with.

    Raises
    ------
    CacheError
        A value is not finite or beyond 65504, or a row loses more than MOST_LOST of its norm.
    """
    with np.errstate(over="ignore"):
        halves: Half = values.astype(np.float16)
    for start in range(0, len(values), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        _check(values[block], halves[block], lambda row, start=start: name(start + row), mend)  # type: ignore[misc]
    return halves


def _check(values: npt.NDArray[Any], halves: Half, name: Callable[[int], str], mend: str) -> None:
    rows = halves.reshape(len(halves), -1)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise CacheError(
            f"{name(int(np.argmin(finite)))} holds a value that is not finite or beyond 65504, the largest float16; "
            f"{mend}"
        )
    if values.dtype == np.float16:
        return
    lost = _lost(values.reshape(rows.shape), rows)
    row = int(np.argmax(lost))
    if lost[row] > MOST_LOST:
        raise CacheError(f"{name(row)} loses {lost[row]:.1%} of its norm in float16, its values are too small; {mend}")


def _lost(values: npt.NDArray[Any], halves: Half) -> npt.NDArray[np.float64]:
    """Norm of what rounding takes from each row, as a share of its norm; 0 for a row of zeros."""
    exact = values.astype(np.float64)
    lost = np.linalg.norm(exact - halves, axis=1)
    norm = np.linalg.norm(exact, axis=1)
    share: npt.NDArray[np.float64] = np.divide(lost, norm, out=np.zeros_like(lost), where=norm > 0)
    return share
