"""What stage one needs to know of a set of images, and the registry of the places they come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8
from torch import Tensor


class UnreadableImage(Exception):
    """One image cannot be read; the message says why, in a few words. Its row is kept and reported."""


class ImageNote(UserWarning):
    """One image was read, but not as a matter of course; the message says what was assumed, in a few words."""


class Skipped(NamedTuple):
    """An entry of a place that is no row: its path there, and why, e.g. ``.mov`` or ``link to nothing``."""

    path: str
    reason: str


@runtime_checkable
class ImageSource(Protocol):
    """A fixed, ordered list of images; row r is the same image on every machine.

    A class that names this one as its base inherits `path`, `prefetch`, `sizes`, `skipped` and `remarks`, and writes
    the rest.
    """

    keys: list[str]
    """One name per row, unique, valid Unicode."""

    labels: Int32[np.ndarray, " N"]
    """Index into `classes`, -1 where unknown. For scoring only, never for training."""

    classes: tuple[str, ...]
    """Names of the classes; empty when nothing is known of them."""

    splits: dict[str, tuple[int, int]]
    """Row range [start, stop) of each split; empty when there are none."""

    digest: str
    """Identifies the ordered list of images."""

    sizes: Sequence[int] = ()
    """Bytes of each image, where names and sizes are what tells the list from others; else ()."""

    skipped: Sequence[Skipped] = ()
    """What was found in the same place and left out."""

    remarks: Sequence[str] = ()
    """What else a person should know of how the images were found, each in a few words."""

    def data(self, row: int) -> bytes:
        """What `read` decodes, for a digest of the content; raises UnreadableImage."""
        raise NotImplementedError

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        """The image of `row` as RGB, upright; raises UnreadableImage."""
        raise NotImplementedError

    def prefetch(self, rows: Sequence[int]) -> None:
        """Told which rows are read next, before a batch of them is: for a source that asks for several at once."""
        return None

    def path(self, row: int) -> Path | None:
        """The file that holds image `row` and nothing else; None where there is none."""
        return None


@dataclass(frozen=True)
class SourceKind:
    """One kind of place that images come from.

    Attributes
    ----------
    name
        Kept beside a cache, so that its images are found again by the same kind.
    claims
        Whether a SOURCE of the command line is of this kind. The first kind that claims it opens it.
    open
        SOURCE, ``--root`` or None, and the limit on pixels -> the images; raises UserError.
    is_path
        Whether SOURCE is a path, which is recorded as an absolute one, or a name.
    """

    name: str
    claims: Callable[[str], bool]
    open: Callable[[str, Path | None, int], ImageSource]
    is_path: bool = True


KINDS: list[SourceKind] = []
"""Every kind, in the order in which they are asked."""


def register_source(kind: SourceKind) -> None:
    """Ask `kind` before all that are there; it takes the place of one of the same name."""
    KINDS[:] = [kind, *(other for other in KINDS if other.name != kind.name)]


def find_kind(source: str) -> SourceKind | None:
    """The kind that opens `source`."""
    return next((kind for kind in KINDS if kind.claims(source)), None)
