"""What a cache was made from."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import xxhash
from pydantic import ConfigDict, Field

from temi.cache.schema import MAX_VIEWS

MEANING = ("backbone", "revision", "preprocessing", "pooling")
SPACES = "spaces"  # entry of a joined cache's preprocessing: what each space is, in order
JOINED = " + "  # between what its spaces are called, in the other fields
IMPORTED = "imported"  # the pooling of embeddings made elsewhere: what pooled them is not known


@dataclass(frozen=True)
class Fingerprint:
    """Every setting that changes the numbers in a cache, and nothing else.

    Batch size, workers, device and shard size are absent on purpose: a cache may be continued with others.
    """

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    backbone: str  # id of the frozen encoder
    revision: str  # resolved commit of the weights, or their digest
    preprocessing: dict[str, Any]  # the encoder's image settings, as JSON
    pooling: str  # how tokens become one vector
    precision: str  # of the forward pass
    view_policy: dict[str, Any]  # of the augmented views, as JSON; {} without views
    view_seed: int
    views: Annotated[int, Field(ge=0, le=MAX_VIEWS)]  # V
    images: str  # digest of the ordered list of images
    dtype: Literal["float16"] = "float16"  # as stored

    def __post_init__(self) -> None:
        # Through JSON once, so that a tuple given here equals the list read back from a manifest.
        for name in ("preprocessing", "view_policy"):
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name), allow_nan=False, sort_keys=True)))

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that identify these settings; every shard carries them."""
        canonical = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return xxhash.xxh3_128_hexdigest(canonical.encode())

    def differences_in_meaning(self, other: "Fingerprint") -> list[str]:
        """Those of `differences` by which embeddings of `other` do not mean what those of here do.

        How files are decoded is none of them: other decoding changes a few pictures, not what the numbers stand for.
        Nor is the revision of imported embeddings: it is the digest of their file, another for every new set of images.
        Joined caches are compared space by space.
        """
        here, there = (_meaning(asdict(made), iter(made.pooling.split(JOINED))) for made in (self, other))
        return [text for name in MEANING for text in _differences(name, here.get(name), there.get(name))]

    def differences(self, other: "Fingerprint") -> list[str]:
        """Fields in which `other`, what is asked for, differs from what is here: ``field: here X, asked Y``."""
        found: list[str] = []
        for field in fields(self):
            found += _differences(field.name, getattr(self, field.name), getattr(other, field.name))
        return found


def _meaning(made: dict[str, Any], pooling: Iterator[str]) -> dict[str, Any]:
    """The settings `made`, of a fingerprint or of a space, without those that say nothing of what the numbers mean.

    `pooling` yields that of each space that was not joined, in order.
    """
    shown = {name: value for name, value in made["preprocessing"].items() if name != "decoding"}
    if joined := SPACES in shown:
        shown[SPACES] = {str(place): _meaning(space, pooling) for place, space in enumerate(shown[SPACES])}
    # Spaces have revisions of their own; that of imported embeddings is the digest of a file.
    nameless = joined or next(pooling, None) == IMPORTED
    return {**made, "preprocessing": shown, "revision": None if nameless else made["revision"]}


_ABSENT = object()


def _differences(name: str, here: Any, asked: Any) -> list[str]:
    if isinstance(here, dict) and isinstance(asked, dict):
        found: list[str] = []
        for key in sorted(here.keys() | asked.keys()):
            found += _differences(f"{name}.{key}", here.get(key, _ABSENT), asked.get(key, _ABSENT))
        return found
    if type(here) is type(asked) and here == asked:
        return []
    return [f"{name}: here {_shown(here)}, asked {_shown(asked)}"]


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
