"""What was computed from a cache and is kept beside it: arrays in a safetensors file, under the recipe that made them.

::

    FOLDER/NAME-KEY.safetensors    KEY is a digest of the recipe, which the file holds too

A damaged file, or one of another recipe, is made again.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from temi.cache.files import LOCK, Lock, make_folder, write_atomic

Recipe = Mapping[str, str | int | float]
Arrays = dict[str, npt.NDArray[Any]]
HEADER = "temi"  # the one entry of a file's metadata: several would be written in a random order
_UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError)  # what a damaged file raises
_FILE = re.compile(r"[a-z-]+-[0-9a-f]{16}\.safetensors")


@dataclass(frozen=True)
class Kept:
    """One file: what it is, what it was made from, and its size."""

    path: Path
    name: str
    recipe: dict[str, str | int | float]
    nbytes: int


def kept_path(folder: Path, name: str, recipe: Recipe) -> Path:
    """Where arrays of this name and recipe are kept."""
    key = xxhash.xxh3_64_hexdigest(json.dumps(dict(recipe), sort_keys=True).encode())
    return folder / f"{name}-{key}.safetensors"


def save_kept(folder: Path, name: str, recipe: Recipe, arrays: Arrays) -> None:
    """Keep `arrays` in `folder`. Raises CacheError where it cannot be written to."""
    path = kept_path(folder, name, recipe)
    header = {"name": name, "recipe": dict(recipe), "xxh3_128": array_digest(arrays)}
    packed = save({key: np.ascontiguousarray(values) for key, values in arrays.items()}, {HEADER: json.dumps(header)})
    make_folder(folder)
    with Lock.wait_for(folder / f"{path.name}{LOCK}"):
        write_atomic(path, packed)


def load_kept(folder: Path, name: str, recipe: Recipe) -> Arrays | None:
    """The arrays that `save_kept` left in `folder`; None where there are none, or not exactly those."""
    try:
        with safe_open(kept_path(folder, name, recipe), framework="np") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            intact = header["recipe"] == dict(recipe) and header["xxh3_128"] == array_digest(arrays)
    except _UNREADABLE:
        return None
    return arrays if intact else None


def list_kept(folder: Path) -> Iterator[Kept]:
    """Every file of this kind in `folder`, by name; those that cannot be read have an empty recipe."""
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        if not _FILE.fullmatch(path.name):
            continue
        recipe: dict[str, str | int | float] = {}
        with suppress(*_UNREADABLE), safe_open(path, framework="np") as file:
            recipe = dict(json.loads((file.metadata() or {})[HEADER])["recipe"])
        yield Kept(path, path.name.rpartition("-")[0], recipe, path.stat().st_size)


def array_digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """xxh3_128 of the name, type, shape and bytes of every array."""
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
