"""The plan of a cache: what it was made from and which rows lie in which shard."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from temi.cache.files import parse, read_sealed, write_sealed
from temi.cache.fingerprint import Fingerprint
from temi.cache.schema import LISTING, MANIFEST, MAX_DIM, MAX_VIEWS, SCHEMA, CacheError, Rows, Shard, plan_shards
from temi.cache.words import counted

_GENERATION = re.compile(r"manifest-(\d{5})\.json")
_GROWTH = ("earlier", "removed", "changed")  # fields that a cache which never grew leaves out
_OPTIONAL = (*_GROWTH, "viewed")


@dataclass(frozen=True)
class Generation:
    """What a cache held before it grew."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    rows: Rows
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]  # digest that the shards up to there carry


@dataclass(frozen=True)
class Viewed:
    """How many views a cache had before more were added, and its digest then: runs name it by that."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    views: Annotated[int, Field(ge=0, le=MAX_VIEWS)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says: written first, never changed afterwards.

    A cache that grew has another manifest for each time, ``manifest-00001.json`` and so on. Each describes all rows;
    those of the generations before it are the same rows, in the same shards.
    """

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    fingerprint: Fingerprint
    rows: Rows  # N
    dim: Annotated[int, Field(ge=1, le=MAX_DIM)]  # D
    shards: tuple[Shard, ...]  # in order, every row in exactly one
    splits: dict[str, tuple[int, int]]  # name -> rows start to stop (exclusive)
    classes: tuple[str, ...]  # name of each label; empty when labels are unknown
    earlier: tuple[Generation, ...] = ()  # the generations before this one, oldest first
    removed: tuple[Rows, ...] = ()  # rows whose image is no longer in the source
    changed: tuple[Rows, ...] = ()  # rows whose image is another now, with a row of its own further on
    viewed: tuple[Viewed, ...] = ()  # what the cache was before views were added, oldest first

    def __post_init__(self) -> None:
        stop = 0
        for index, shard in enumerate(self.shards):
            if shard.index != index or shard.start != stop or shard.stop <= shard.start:
                raise CacheError(f"shards do not cover the rows in order at {shard}")
            stop = shard.stop
        if stop != self.rows:
            raise CacheError(f"shards cover {counted(stop, 'row')} of {self.rows}")
        for name, (first, last) in self.splits.items():
            if not 0 <= first <= last <= self.rows:
                raise CacheError(f"split {name!r} is rows {first} to {last} of {self.rows}")
        if any(row >= self.rows for row in self.gone):
            raise CacheError(f"a row that is gone is not one of {self.rows}")

    @property
    def generation(self) -> int:
        """How often the cache has grown."""
        return len(self.earlier)

    @property
    def gone(self) -> frozenset[int]:
        """Rows whose image is not in the source any more as it was."""
        return frozenset((*self.removed, *self.changed))

    def fingerprint_of(self, shard: Shard) -> str:
        """Digest of the fingerprint that `shard` was made under, which it carries."""
        made = (before.fingerprint for before in self.earlier if shard.stop <= before.rows)
        return next(made, self.fingerprint.digest)

    def grown(
        self,
        fingerprint: Fingerprint,
        added: int,
        shard_rows: int,
        *,
        classes: tuple[str, ...],
        removed: tuple[int, ...] = (),
        changed: tuple[int, ...] = (),
    ) -> "Manifest":
        """The next generation: `added` rows after those that are here, in shards of their own."""
        shards = [
            Shard(len(self.shards) + new.index, self.rows + new.start, self.rows + new.stop)
            for new in plan_shards(added, shard_rows)
        ]
        return replace(
            self,
            fingerprint=fingerprint,
            rows=self.rows + added,
            shards=(*self.shards, *shards),
            classes=classes,
            earlier=(*self.earlier, Generation(self.rows, self.fingerprint.digest)),
            removed=removed,
            changed=changed,
        )

    @property
    def views(self) -> int:
        """V, augmented views per row."""
        return self.fingerprint.views

    def differences(self, other: "Manifest") -> list[str]:
        """Fields in which `other`, what is asked for, differs from what is here: ``field: here X, asked Y``."""
        if other.earlier == (*self.earlier, Generation(self.rows, self.fingerprint.digest)):  # it continues this one
            return self.fingerprint.differences(replace(other.fingerprint, images=self.fingerprint.images))
        found = self.fingerprint.differences(other.fingerprint)
        for name in ("rows", "dim", "splits", "classes", *_GROWTH):
            here, asked = getattr(self, name), getattr(other, name)
            if here != asked:
                found.append(f"{name}: here {_shown(here)}, asked {_shown(asked)}")
        if self.shards != other.shards and self.rows == other.rows:
            found.append(f"rows per shard: here {_shard_rows(self)}, asked {_shard_rows(other)}")
        return found

    def write(self, folder: Path) -> None:
        """Save as the manifest of its generation in `folder`, atomically."""
        table = {name: value for name, value in asdict(self).items() if value or name not in _OPTIONAL}
        write_sealed(folder / self.file_name, {"schema": SCHEMA, **table})

    @property
    def file_name(self) -> str:
        """``manifest.json``, or that of a later generation."""
        return manifest_name(self.generation)

    @classmethod
    def read(cls, folder: Path, generation: int | None = None) -> "Manifest":
        """Load the manifest of the newest generation in `folder`, or of another.

        Raises
        ------
        CacheError
            There is none, it was changed or damaged, or it is of another schema version.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise CacheError(f"{folder} is not an embedding cache (no {MANIFEST}); make one with `temi embed`")
        path = folder / manifest_name(newest_generation(folder) if generation is None else generation)
        manifest = cls.parse(read_sealed(path), path)
        if manifest.file_name != path.name:
            raise CacheError(f"{path} is the manifest of another generation; restore it or embed again")
        return manifest

    @classmethod
    def parse(cls, table: dict[str, Any], path: Path) -> "Manifest":
        """The manifest in `table`, which comes from `path`; CacheError if it is not valid."""
        check_schema(table, path)
        return parse(cls, table, path)


def manifest_name(generation: int) -> str:
    """File name of the manifest of a generation, 0 is that of a cache that never grew."""
    return f"manifest-{generation:05d}.json" if generation else MANIFEST


def listing_name(generation: int) -> str:
    """File name of the list of the images that a generation added."""
    return f"{LISTING}-{generation:05d}.parquet"


def newest_generation(folder: Path) -> int:
    """The generation that the cache in `folder` has come to."""
    names = (_GENERATION.fullmatch(path.name) for path in folder.glob("manifest-*.json"))
    return max((int(found[1]) for found in names if found), default=0)


def check_schema(table: dict[str, Any], path: Path) -> None:
    """Take the schema version out of `table`; refuse any but ours."""
    version = table.pop("schema", None)
    if version != SCHEMA or isinstance(version, bool):
        raise CacheError(
            f"{path} is of schema version {version!r}, this program reads version {SCHEMA}; "
            "embed again, or use the version of temi that wrote it"
        )


def _shard_rows(manifest: Manifest) -> int:
    return manifest.shards[0].rows if manifest.shards else 0


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
