"""Every way in which a cache may be damaged is detected: by `verify`, which names it, and by opening and reading."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_manifest, write_cache

from temi.cache import CacheError, EmbeddingCache
from temi.cache.verify import verify

SHARDS = [f"shard-{index:05d}" for index in range(3)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_cache(folder / "cache")
    write_cache(folder / "foreign", make_manifest(images="f" * 32))
    return folder


def open_and_read(folder: Path) -> None:
    """What training does, and a bit more: every dataset is read."""
    cache = EmbeddingCache.open(folder)
    cache.embedding()
    cache.view_embedding()
    _ = cache.keys, cache.labels, cache.ok
    for shard in cache.manifest.shards:
        cache._file(shard).array("row")


def truncate(folder: Path, random: random.Random) -> str:
    path = folder / f"{random.choice(SHARDS)}{random.choice(['.h5', '.json'])}"
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(len(data) - 1)])  # -1: a lost newline at the end is no damage
    return path.name


def flip(folder: Path, random: random.Random) -> str:
    path = folder / random.choice([f"{name}{suffix}" for name in SHARDS for suffix in (".h5", ".h5", ".json")])
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    return path.name


def lose(folder: Path, random: random.Random) -> str:
    path = folder / f"{random.choice(SHARDS)}{random.choice(['.h5', '.json'])}"
    path.unlink()
    return path.name


def swap(folder: Path, random: random.Random) -> str:
    """One shard in the place of another of the same cache, with or without its sidecar."""
    one, other = random.sample(SHARDS, 2)
    for suffix in random.choice([(".h5",), (".json",), (".h5", ".json")]):
        shutil.copy(folder / f"{other}{suffix}", folder / f"{one}{suffix}")
    return one


def replace_by_foreign(folder: Path, random: random.Random) -> str:
    """A shard of a cache with another fingerprint but the same sizes, with or without its sidecar."""
    name = random.choice(SHARDS)
    for suffix in random.choice([(".h5",), (".json",), (".h5", ".json")]):
        shutil.copy(folder.parent / "foreign" / f"{name}{suffix}", folder / f"{name}{suffix}")
    return name


def zero(folder: Path, random: random.Random) -> str:
    """A stretch of zeros, as a disk leaves it after a crash."""
    path = folder / f"{random.choice(SHARDS)}.h5"
    data = bytearray(path.read_bytes())
    nonzero = [place for place, value in enumerate(data) if value]
    start = random.choice(nonzero)
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)
    return path.name


def append(folder: Path, random: random.Random) -> str:
    path = folder / f"{random.choice(SHARDS)}.h5"
    path.write_bytes(path.read_bytes() + random.randbytes(random.randint(1, 99)))
    return path.name


FAULTS: list[Callable[[Path, random.Random], str]] = [
    truncate,
    flip,
    flip,
    lose,
    swap,
    replace_by_foreign,
    zero,
    append,
]


@pytest.mark.parametrize("seed", range(120))
def test_an_injected_fault_is_named_by_verify_and_refused_by_reading(finished: Path, tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(finished / "cache", folder)
    shutil.copytree(finished / "foreign", tmp_path / "foreign")
    chance = random.Random(seed)
    name = FAULTS[seed % len(FAULTS)](folder, chance)
    problems = verify(folder)
    assert any(name.partition(".")[0] in problem for problem in problems), f"{name} was not named: {problems}"
    with pytest.raises(CacheError, match=name.partition(".")[0]):
        open_and_read(folder)


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_of_the_manifest_is_detected(finished: Path, tmp_path: Path, seed: int) -> None:
    folder = Path(shutil.copytree(finished / "cache", tmp_path / "cache"))
    chance = random.Random(seed)
    data = bytearray((folder / "manifest.json").read_bytes())
    data[chance.randrange(len(data) - 1)] ^= 1 << chance.randrange(8)
    (folder / "manifest.json").write_bytes(data)
    assert len(verify(folder)) == 1
    with pytest.raises(CacheError, match=r"manifest\.json"):
        EmbeddingCache.open(folder)


def test_every_byte_of_a_shard_counts(finished: Path, tmp_path: Path) -> None:
    """No byte of the file lies outside of what is checked when the datasets are read."""
    folder = Path(shutil.copytree(finished / "cache", tmp_path / "cache"))
    path = folder / "shard-00002.h5"
    data = path.read_bytes()
    for place in range(0, len(data), 11):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(CacheError, match=r"shard-00002\.h5 is damaged"):
            open_and_read(folder)
    path.write_bytes(data)
    open_and_read(folder)


def test_one_damaged_dataset_does_not_hide_behind_another(finished: Path, tmp_path: Path) -> None:
    """Reading embeddings needs no bytes of the views, and reading the views finds their damage."""
    folder = Path(shutil.copytree(finished / "cache", tmp_path / "cache"))
    path = folder / "shard-00000.h5"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the views are last
    path.write_bytes(data)
    cache = EmbeddingCache.open(folder)
    assert cache.embedding().shape == (20, 6)
    with pytest.raises(CacheError, match="the bytes of views"):
        cache.view_embedding()
    with pytest.raises(CacheError, match="the bytes of views"):
        cache.view_embedding(1, 2)
    assert cache.view_embedding(7, 20).shape == (13, 2, 6)


def test_a_shard_that_is_gone_after_opening_is_named(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished / "cache", tmp_path / "cache"))
    cache = EmbeddingCache.open(folder)
    (folder / "shard-00001.h5").unlink()
    with pytest.raises(CacheError, match=r"cannot read .*shard-00001\.h5"):
        cache.embedding()


def test_deleting_the_sidecar_of_a_damaged_shard_repairs_it(finished: Path, tmp_path: Path) -> None:
    """The advice that the messages give."""
    folder = Path(shutil.copytree(finished / "cache", tmp_path / "cache"))
    before = (folder / "shard-00001.h5").read_bytes()
    (folder / "shard-00001.h5").write_bytes(before[:-40] + bytes(40))
    with pytest.raises(CacheError, match=r"delete shard-00001\.json and rerun the command that made the cache"):
        open_and_read(folder)
    (folder / "shard-00001.json").unlink()
    write_cache(folder)
    assert (folder / "shard-00001.h5").read_bytes() == before
    assert verify(folder) == []


def test_digests_are_those_of_the_standard_tool(finished: Path) -> None:
    """xxh3 128 of the whole file, big endian, so that `xxhsum -H2` can check a cache without this program."""
    import xxhash

    sidecar = json.loads((finished / "cache" / "shard-00000.json").read_text())
    data = (finished / "cache" / "shard-00000.h5").read_bytes()
    assert sidecar["xxh3_128"] == xxhash.xxh3_128(data).hexdigest()
    assert sidecar["size"] == len(data)
    assert np.isfinite(list(sidecar["seconds"].values())).all()
