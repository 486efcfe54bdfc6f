"""A place whose images changed: its images in the order of a cache's rows, and after those the ones that are new.

Row r of a cache is one image for ever. What stood behind each row is kept beside the cache, one file a generation::

    CACHE/listing-00000.parquet    key, size and, where the bytes tell images apart, a digest of them
"""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Int64, UInt8
from torch import Tensor

from temi.cache import CacheError, EmbeddingCache, Manifest
from temi.cache.manifest import listing_name
from temi.cache.words import counted
from temi.pipeline.errors import UserError
from temi.pipeline.images.content import SIGN, content_digests, join_digests
from temi.pipeline.images.listing import digest
from temi.pipeline.images.source import ImageSource, UnreadableImage

GONE = -1  # place of a row whose image is not there any more
FEWEST_KEPT = 0.5  # share of a cache's images that must still be there; with fewer it is another set of images


@dataclass(frozen=True)
class Listing:
    """The images behind rows of a cache, as they were when they were embedded.

    Attributes
    ----------
    keys, sizes : name and bytes of each
    contents : digest of the bytes of each; () where names and sizes alone tell images apart
    """

    keys: Sequence[str]
    sizes: Sequence[int]
    contents: Sequence[bytes] = ()

    @classmethod
    def of(cls, images: ImageSource, *, content: bool = False) -> "Listing | None":
        """What `images` holds now; None where it does not tell sizes. With `content`, every byte is read."""
        if len(images.sizes) != len(images.keys):
            return None
        return cls(images.keys, images.sizes, content_digests(images) if content else ())

    @property
    def digest(self) -> str:
        """As a fingerprint holds it."""
        names = digest(list(self.keys), self.sizes)
        return f"{names}{SIGN}{join_digests(self.contents)}" if self.contents else names

    def take(self, positions: Sequence[int]) -> "Listing":
        """Some of the images."""
        contents = [self.contents[position] for position in positions] if self.contents else ()
        return Listing([self.keys[p] for p in positions], [self.sizes[p] for p in positions], contents)

    def followed_by(self, other: "Listing") -> "Listing":
        """These images, then those of `other`."""
        contents = [*self.contents, *other.contents]
        return Listing([*self.keys, *other.keys], [*self.sizes, *other.sizes], contents)

    def identity(self, position: int) -> tuple[int, bytes]:
        """What is another number when the image behind a name changed."""
        return self.sizes[position], self.contents[position] if self.contents else b""

    def to_parquet(self) -> bytes:
        """The bytes of a listing file; equal lists give equal bytes."""
        columns = {"key": pa.array(self.keys, pa.string()), "size": pa.array(self.sizes, pa.int64())}
        if self.contents:
            columns["content"] = pa.array(self.contents, pa.binary())
        sink = io.BytesIO()
        # Names of a folder share their beginnings: stored as what each adds to the one before.
        encoding = {"key": "DELTA_BYTE_ARRAY", "size": "PLAIN"}
        pyarrow.parquet.write_table(
            pa.table(columns),
            sink,
            compression="zstd",
            use_dictionary=False,
            column_encoding=encoding | ({"content": "PLAIN"} if self.contents else {}),
        )
        return sink.getvalue()

    @classmethod
    def from_parquet(cls, path: Path) -> "Listing":
        """Read what `to_parquet` gave. Raises OSError, ArrowException or KeyError where it is not that."""
        table = pyarrow.parquet.read_table(path)
        contents = table["content"].to_pylist() if "content" in table.column_names else ()
        return cls(table["key"].to_pylist(), table["size"].to_pylist(), contents)


def read_listing(folder: Path, manifest: Manifest) -> Listing | None:
    """The images behind the rows of `manifest`; None where that was not kept, or not exactly that."""
    listing = Listing([], [])
    try:
        for generation in range(manifest.generation + 1):
            listing = listing.followed_by(Listing.from_parquet(folder / listing_name(generation)))
    except (OSError, pa.ArrowException, KeyError):
        return None
    return listing if listing.digest == manifest.fingerprint.images else None


def recall_listing(folder: Path, manifest: Manifest, now: Listing) -> Listing | None:
    """`read_listing`; of a cache that kept none, what `now` tells, if no image of it was removed or changed."""
    if (listing := read_listing(folder, manifest)) is not None:
        return listing
    try:
        keys = EmbeddingCache.open(folder).keys
    except CacheError:
        return None
    place = {key: position for position, key in enumerate(now.keys)}
    if not place.keys() >= set(keys):
        return None
    found = now.take([place[key] for key in keys])
    return found if found.digest == manifest.fingerprint.images else None


class GrownImages(ImageSource):
    """The images behind the rows of a cache, found again in `images`, and then those that no row shows yet.

    A row whose image is no longer there, or is another now, stays and cannot be read. Names of classes keep their
    numbers; new ones follow.

    Attributes
    ----------
    listing : of all rows
    added : rows at the end that are new
    removed, changed : rows whose image is not there, or is another now
    returned : how many rows have their image again, of those in `gone`
    """

    def __init__(
        self,
        images: ImageSource,
        now: Listing,
        before: Listing,
        classes: Sequence[str],
        gone: Collection[int] = (),
    ) -> None:
        self._images = images
        place, self.changed = find_rows(before, now)
        self.removed = tuple(sorted(set(np.flatnonzero(place == GONE).tolist()) - set(self.changed)))
        self.returned = sum(1 for row in gone if place[row] != GONE)
        new = np.setdiff1d(np.arange(len(now.keys)), place)
        self.added = len(new)
        self._place = np.concatenate([place, new])
        self.listing = before.followed_by(now.take(new.tolist()))
        self.keys, self.sizes = list(self.listing.keys), self.listing.sizes
        self.digest = self.listing.digest
        self.classes = (*classes, *(name for name in images.classes if name not in classes)) if classes else ()
        number = {name: label for label, name in enumerate(self.classes)}
        labels = np.array([*(number.get(name, -1) for name in images.classes), -1], np.int32)
        self.labels = np.where(self._place == GONE, -1, labels[images.labels[self._place]]).astype(np.int32)
        self.splits = {}
        self.skipped, self.remarks = images.skipped, images.remarks

    @property
    def kept(self) -> int:
        """Rows whose image is there as it was."""
        return len(self.keys) - self.added - len(self.removed) - len(self.changed)

    def path(self, row: int) -> Path | None:
        return None if self._place[row] == GONE else self._images.path(int(self._place[row]))

    def prefetch(self, rows: Sequence[int]) -> None:
        self._images.prefetch([int(self._place[row]) for row in rows if self._place[row] != GONE])

    def data(self, row: int) -> bytes:
        return self._images.data(self._found(row))

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return self._images.read(self._found(row))

    def _found(self, row: int) -> int:
        if self._place[row] == GONE:
            raise UnreadableImage("no longer there as it was" if row in self.changed else "no longer there")
        return int(self._place[row])


def find_rows(before: Listing, now: Listing) -> tuple[Int64[np.ndarray, " N"], tuple[int, ...]]:
    """Where the image of each row of `before` stands in `now`, or GONE; and the rows whose name shows another now.

    Of two rows of one name the later one is tried first: it is the newer image.
    """
    place = np.full(len(before.keys), GONE, np.int64)
    position_of = {key: position for position, key in enumerate(now.keys)}
    taken, changed = set[int](), list[int]()
    for row in reversed(range(len(before.keys))):
        position = position_of.get(before.keys[row])
        if position is None:
            continue
        if position not in taken and before.identity(row) == now.identity(position):
            place[row] = position
            taken.add(position)
        else:
            changed.append(row)
    return place, tuple(reversed(changed))


def continue_cache(images: ImageSource, now: Listing, folder: Path, there: Manifest) -> "GrownImages | None":
    """`images`, listed in `now`, in the order of the rows of the cache in `folder`, if it can go on with them.

    None where images and cache do not tell enough to find each other.

    Raises
    ------
    UserError
        Most images of the cache are not there, or they have splits, which are ranges of rows and cannot grow.
    """
    before = recall_listing(folder, there, now)
    if before is None or bool(before.contents) != bool(now.contents):
        return None
    grown = GrownImages(images, now, before, there.classes, there.gone)
    expected = there.rows - len(there.gone)
    if grown.kept < FEWEST_KEPT * expected:
        raise UserError(
            f"{grown.kept:,} of the {counted(expected, 'image')} of {folder} are among these, so they are another set; "
            "choose another folder for their cache, or give --overwrite to delete it"
        )
    if there.splits or images.splits:
        raise UserError(
            f"the images of {folder} have changed ({describe(grown)}), and its splits are ranges of rows, which cannot "
            "grow; embed them into another folder"
        )
    return grown


def describe(grown: GrownImages) -> str:
    """How many images are new, how many came back, and how many are gone."""
    counts = {
        "new": grown.added,
        "returned": grown.returned,
        "removed": len(grown.removed),
        "changed": len(grown.changed),
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
