"""What stage one needs to know of a set of images."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8
from torch import Tensor


class UnreadableImage(Exception):
    """One image cannot be read; the message says why, in a few words. Its row is kept and reported."""


@runtime_checkable
class ImageSource(Protocol):
    """A fixed, ordered list of images; row r is the same image on every machine."""

    @property
    def keys(self) -> list[str]:
        """One name per row, unique."""

    @property
    def labels(self) -> Int32[np.ndarray, " N"]:
        """Index into `classes`, -1 where unknown. For scoring only, never for training."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty when nothing is known of them."""

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        """Row range [start, stop) of each split; empty when there are none."""

    @property
    def digest(self) -> str:
        """Identifies the ordered list of images."""

    def data(self, row: int) -> bytes:
        """What `read` decodes, for a digest of the content; raises UnreadableImage."""

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        """The image of `row` as RGB, upright; raises UnreadableImage."""
