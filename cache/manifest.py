"""The plan of a cache: what it was made from and which rows lie in which shard."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from temi.cache.files import parse, read_sealed, write_sealed
from temi.cache.fingerprint import Fingerprint
from temi.cache.schema import MANIFEST, MAX_DIM, SCHEMA, CacheError, Rows, Shard


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says: written first, never changed afterwards."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    fingerprint: Fingerprint
    rows: Rows  # N
    dim: Annotated[int, Field(ge=1, le=MAX_DIM)]  # D
    shards: tuple[Shard, ...]  # in order, every row in exactly one
    splits: dict[str, tuple[int, int]]  # name -> rows start to stop (exclusive)
    classes: tuple[str, ...]  # name of each label; empty when labels are unknown

    def __post_init__(self) -> None:
        stop = 0
        for index, shard in enumerate(self.shards):
            if shard.index != index or shard.start != stop or shard.stop <= shard.start:
                raise CacheError(f"shards do not cover the rows in order at {shard}")
            stop = shard.stop
        if stop != self.rows:
            raise CacheError(f"shards cover {stop} rows of {self.rows}")
        for name, (first, last) in self.splits.items():
            if not 0 <= first <= last <= self.rows:
                raise CacheError(f"split {name!r} is rows {first} to {last} of {self.rows}")

    @property
    def views(self) -> int:
        """V, augmented views per row."""
        return self.fingerprint.views

    def differences(self, other: "Manifest") -> list[str]:
        """Fields in which `other`, what is asked for, differs from what is here: ``field: here X, asked Y``."""
        found = self.fingerprint.differences(other.fingerprint)
        for name in ("rows", "dim", "splits", "classes"):
            here, asked = getattr(self, name), getattr(other, name)
            if here != asked:
                found.append(f"{name}: here {_shown(here)}, asked {_shown(asked)}")
        if self.shards != other.shards and self.rows == other.rows:
            found.append(f"rows per shard: here {_shard_rows(self)}, asked {_shard_rows(other)}")
        return found

    def write(self, folder: Path) -> None:
        """Save as ``folder/manifest.json``, atomically."""
        write_sealed(folder / MANIFEST, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Load ``folder/manifest.json``.

        Raises
        ------
        CacheError
            There is none, it was changed or damaged, or it is of another schema version.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise CacheError(f"{folder} is not an embedding cache (no {MANIFEST}); make one with `temi embed`")
        return cls.parse(read_sealed(path), path)

    @classmethod
    def parse(cls, table: dict[str, Any], path: Path) -> "Manifest":
        """The manifest in `table`, which comes from `path`; CacheError if it is not valid."""
        check_schema(table, path)
        return parse(cls, table, path)


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
