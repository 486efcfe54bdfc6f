"""Shards and sidecars made by somebody who knows the format, digests included: refused, and no other file is read."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash
from synthetic import make_manifest, write_cache
from test_manifest import rewrite

from temi.cache import CacheError, EmbeddingCache
from temi.cache.files import read_sealed, write_sealed
from temi.cache.verify import verify

DTYPES = {"embedding": "f2", "row": "i8", "key": "S32", "label": "i4", "ok": "?", "views": "f2"}
SHAPES = {"embedding": (7, 6), "row": (7,), "key": (7,), "label": (7,), "ok": (7,), "views": (7, 2, 6)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", failures={})
    return tmp_path / "cache"


def honest(file: h5py.File, without: str = "") -> None:
    """A shard as the writer makes it, `without` one dataset."""
    file.attrs["schema"] = np.int64(1)
    file.attrs["fingerprint"] = np.bytes_(make_manifest().fingerprint.digest)
    names = [name for name in DTYPES if name != without]
    for name in names:
        dtype = h5py.string_dtype("utf-8", 32) if name == "key" else DTYPES[name]
        file.create_dataset(name, SHAPES[name], dtype, track_times=False)
    for name in names:
        file[name][...] = np.zeros(SHAPES[name], file[name].dtype)
    if not without:
        file["row"][...] = np.arange(7)
        file["ok"][...] = True


def external_link(file: h5py.File) -> None:
    honest(file, "embedding")
    file["embedding"] = h5py.ExternalLink("secret.h5", "embedding")


def soft_link(file: h5py.File) -> None:
    honest(file, "embedding")
    file["other"] = np.zeros((7, 6), "f2")
    file["embedding"] = h5py.SoftLink("/other")


def soft_link_in_place(file: h5py.File) -> None:
    honest(file, "embedding")
    file["embedding"] = h5py.SoftLink("/views")


def external_storage(file: h5py.File) -> None:
    honest(file, "embedding")
    file.create_dataset("embedding", (7, 6), "f2", external=[("secret.raw", 0, 84)])


def virtual(file: h5py.File) -> None:
    honest(file, "embedding")
    layout = h5py.VirtualLayout((7, 6), "f2")
    layout[:] = h5py.VirtualSource("secret.h5", "embedding", (7, 6))
    file.create_virtual_dataset("embedding", layout)


def huge(file: h5py.File) -> None:
    honest(file, "embedding")
    file.create_dataset("embedding", (2**40, 2**20), "f2", chunks=(64, 64))


def bomb(file: h5py.File) -> None:
    honest(file, "embedding")
    file.create_dataset("embedding", (7, 6), "f2", chunks=(7, 6), compression="gzip")


def objects(file: h5py.File) -> None:
    honest(file, "key")
    file.create_dataset("key", data=["x"] * 7, dtype=h5py.string_dtype())


def references(file: h5py.File) -> None:
    honest(file, "embedding")
    file.create_dataset("embedding", (7, 6), h5py.ref_dtype)


def compound(file: h5py.File) -> None:
    honest(file, "embedding")
    file.create_dataset("embedding", (7, 6), np.dtype([("a", "f2")]))


def big_endian(file: h5py.File) -> None:
    honest(file, "embedding")
    file.create_dataset("embedding", (7, 6), ">f2")


def singles(file: h5py.File) -> None:
    honest(file, "embedding")
    file.create_dataset("embedding", (7, 6), "f4")


def group(file: h5py.File) -> None:
    honest(file, "embedding")
    file.create_group("embedding")


def more(file: h5py.File) -> None:
    honest(file)
    file["more"] = np.zeros(3)


def foreign(file: h5py.File) -> None:
    honest(file)
    file.attrs["fingerprint"] = np.bytes_("f" * 32)


def object_attribute(file: h5py.File) -> None:
    honest(file)
    file.attrs["fingerprint"] = make_manifest().fingerprint.digest  # of variable length


def attribute_of_a_dataset(file: h5py.File) -> None:
    honest(file)
    file["label"].attrs["x"] = 1


def not_hdf5(file: h5py.File) -> None:
    """Replaced by text below."""


def forge_sidecar(folder: Path, **changes: Any) -> None:
    """Make ``shard-00000.json`` fit whatever the .h5 file is now."""
    path = folder / "shard-00000.json"
    data = path.with_suffix(".h5").read_bytes()
    table = read_sealed(path)
    header = len(data) - sum(np.zeros(shape, DTYPES[name]).nbytes for name, shape in SHAPES.items())
    header = min(max(header, 0), 2**20)
    offset, digests = header, {"header": xxhash.xxh3_128_hexdigest(data[:header])}
    for name, shape in SHAPES.items():
        stop = offset + np.zeros(shape, DTYPES[name]).nbytes
        digests[name] = xxhash.xxh3_128_hexdigest(data[offset:stop])
        offset = stop
    forged = {"size": len(data), "header": header, "xxh3_128": xxhash.xxh3_128_hexdigest(data), "digests": digests}
    write_sealed(path, {**table, **forged, **changes})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (external_link, "embedding is a link to another place"),
        (soft_link, "it holds"),
        (soft_link_in_place, "embedding is a link to another place"),
        (external_storage, "embedding is not stored as one plain block"),
        (virtual, "embedding is not stored as one plain block"),
        (huge, "embedding has shape"),
        (bomb, "embedding is not stored as one plain block"),
        (objects, "key has type object"),
        (references, "embedding has type object"),
        (compound, "embedding has type"),
        (big_endian, "embedding has type >f2"),
        (singles, "embedding has type float32"),
        (group, "embedding is not a dataset"),
        (more, "it holds"),
        (foreign, "it belongs to another cache"),
        (object_attribute, "its attribute fingerprint has type object"),
        (attribute_of_a_dataset, "label is not stored as one plain block"),
        (not_hdf5, "it is not valid HDF5"),
    ],
)
def test_a_hostile_shard_is_refused(folder: Path, make: Callable[[h5py.File], None], reason: str) -> None:
    with h5py.File(folder / "secret.h5", "w") as file:
        file["embedding"] = np.ones((7, 6), "f2")
    (folder / "secret.raw").write_bytes(bytes(84))
    with h5py.File(folder / "shard-00000.h5", "w", libver=("v110", "v110")) as file:
        make(file)
    if make is not_hdf5:
        (folder / "shard-00000.h5").write_bytes(b"not HDF5 at all " * 1000)
    forge_sidecar(folder)
    assert any(f"shard-00000.h5 is damaged: {reason}" in problem for problem in verify(folder))
    cache = EmbeddingCache.open(folder)
    with pytest.raises(CacheError, match=rf"shard-00000\.h5 is damaged: {reason}"):
        cache.embedding()


def test_the_forgery_itself_works(folder: Path) -> None:
    """Without anything hostile the forged shard is accepted: the tests above fail for the reasons that they name."""
    with h5py.File(folder / "shard-00000.h5", "w", libver=("v110", "v110")) as file:
        honest(file)
    forge_sidecar(folder)
    assert verify(folder) == []
    assert not EmbeddingCache.open(folder).embedding(0, 7).any()


def test_values_that_are_not_finite_are_refused_even_with_right_digests(folder: Path) -> None:
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file["embedding"][6, 5] = -np.inf
        file["views"][0, 0, 0] = np.nan
    forge_sidecar(folder)
    cache = EmbeddingCache.open(folder)
    with pytest.raises(CacheError, match="values of embedding that are not finite"):
        cache.embedding()
    with pytest.raises(CacheError, match="values of views that are not finite"):
        cache.view_embedding()
    assert any("not finite" in problem for problem in verify(folder))


@pytest.mark.parametrize(("name", "place", "value"), [("row", 0, 1), ("label", 0, 3), ("label", 0, -2), ("ok", 0, 0)])
def test_columns_that_contradict_are_named_by_verify(folder: Path, name: str, place: int, value: int) -> None:
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file[name][place] = value
    forge_sidecar(folder)
    assert any("shard-00000.h5" in problem for problem in verify(folder))


def test_a_key_that_is_not_utf8_is_refused(folder: Path) -> None:
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        offset = file["key"].id.get_offset()
    data = bytearray((folder / "shard-00000.h5").read_bytes())
    data[offset] = 0xFF
    (folder / "shard-00000.h5").write_bytes(data)
    forge_sidecar(folder)
    with pytest.raises(CacheError, match="not UTF-8"):
        _ = EmbeddingCache.open(folder).keys
    assert any("not UTF-8" in problem for problem in verify(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": {"index": "../../secret", "start": 0, "stop": 7}},
        {"shard": {"index": 1, "start": 0, "stop": 7}},
        {"shard": {"index": 0, "start": 0, "stop": 2**62}},
        {"fingerprint": "../../../etc/passwd"},
        {"fingerprint": "f" * 32},
        {"size": -1},
        {"size": "12"},
        {"header": 2**50},
        {"header": -5},
        {"digests": {}},
        {"digests": None},
        {"digests": {"header": "0"}},
        {"failures": "none"},
        {"failures": [{"row": 3}]},
        {"failures": [{"row": 3, "key": "a", "reason": None}]},
        {"seconds": {"decode": "long"}},
        {"path": "/etc/passwd"},
        {"schema": 99},
    ],
    ids=str,
)
def test_a_hostile_sidecar_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    forge_sidecar(folder, **changes)
    assert any("shard-00000" in problem for problem in verify(folder))
    with pytest.raises(CacheError, match=r"shard-00000\.json"):
        EmbeddingCache.open(folder)


def test_a_manifest_of_huge_shapes_allocates_nothing(folder: Path) -> None:
    """A plan of 2^40 rows is refused for its missing shards, long before anything is made for its rows."""
    rewrite(folder, {"rows": 2**40, "shards": [{"index": 0, "start": 0, "stop": 2**40}], "splits": {}})
    with pytest.raises(CacheError, match="belongs to another shard"):
        EmbeddingCache.open(folder)
    assert verify(folder)


@pytest.mark.parametrize("change", [{"rows": 2**40}, {"dim": 2**20}])
def test_a_manifest_that_contradicts_its_shards_is_refused(folder: Path, change: dict[str, Any]) -> None:
    if "rows" in change:
        change["shards"] = [{"index": 0, "start": 0, "stop": change["rows"]}]
    rewrite(folder, change)
    with pytest.raises(CacheError):
        EmbeddingCache.open(folder).embedding()
    assert verify(folder)


def test_links_in_place_of_files_lead_nowhere_unnoticed(folder: Path, tmp_path: Path) -> None:
    """A symbolic link to a shard with other bytes is as good as damage."""
    shutil.copy(folder / "shard-00001.h5", tmp_path / "elsewhere.h5")
    (folder / "shard-00000.h5").unlink()
    (folder / "shard-00000.h5").symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(CacheError, match="damaged"):
        EmbeddingCache.open(folder).embedding()
    (folder / "shard-00002.h5").unlink()
    (folder / "shard-00002.h5").symlink_to(folder)
    with pytest.raises(CacheError, match="shard-0000"):
        EmbeddingCache.open(folder).embedding()
