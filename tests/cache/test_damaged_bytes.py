"""Whatever the files of a cache hold, reading it ends with a CacheError or with the right values, never otherwise."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import write_cache

from temi.cache import CacheError, EmbeddingCache, load_neighbors, save_neighbors
from temi.cache.files import read_sealed, write_sealed
from temi.cache.verify import verify

SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FILES = ["manifest.json", "shard-00000.json", "shard-00001.h5", "shard-00002.h5"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache")
    return tmp_path / "cache"


def read_all(folder: Path) -> list[Any]:
    cache = EmbeddingCache.open(folder)
    return [cache.embedding(), cache.view_embedding(), cache.labels, cache.ok, np.array(cache.keys)]


def check(folder: Path, right: list[Any]) -> None:
    """Reading gives the right values or a CacheError; `verify` names a problem whenever reading fails."""
    problems = verify(folder)
    try:
        values = read_all(folder)
    except CacheError:
        assert problems
        return
    for value, expected in zip(values, right, strict=True):
        np.testing.assert_array_equal(value, expected)


@SETTINGS
@given(data=st.data())
def test_mutated_files(folder: Path, data: st.DataObject) -> None:
    right = read_all(folder)
    path = folder / data.draw(st.sampled_from(FILES))
    original = path.read_bytes()
    start = data.draw(st.integers(0, len(original)))
    stop = data.draw(st.integers(start, min(len(original), start + 300)))
    path.write_bytes(original[:start] + data.draw(st.binary(max_size=300)) + original[stop:])
    try:
        check(folder, right)
    finally:
        path.write_bytes(original)


@SETTINGS
@given(data=st.data())
def test_tables_with_a_right_checksum_and_wrong_content(folder: Path, data: st.DataObject) -> None:
    """Somebody who knows the format puts any JSON in the place of any field, one level down or two."""
    right = read_all(folder)
    path = folder / data.draw(st.sampled_from(["manifest.json", "shard-00000.json"]))
    original = path.read_bytes()
    table = target = read_sealed(path)
    key = data.draw(st.sampled_from(sorted(table)))
    if isinstance(table[key], dict) and table[key] and data.draw(st.booleans()):
        target = table[key]
        key = data.draw(st.sampled_from(sorted(target)))
    before = target[key]
    target[key] = data.draw(json_values)
    try:
        write_sealed(path, table)
    except (CacheError, ValueError):
        return  # not JSON: a lone surrogate, a NaN
    try:
        if json.dumps(before) != json.dumps(target[key]):
            check(folder, right)
    finally:
        path.write_bytes(original)


@SETTINGS
@given(data=st.data())
def test_mutated_neighbors(tmp_path: Path, data: st.DataObject) -> None:
    index = np.arange(12, dtype=np.int32).reshape(4, 3)
    path = save_neighbors(tmp_path, "k", index, index.astype(np.float16), {"metric": "cosine", "k": 3})
    original = path.read_bytes()
    start = data.draw(st.integers(0, len(original)))
    stop = data.draw(st.integers(start, min(len(original), start + 100)))
    path.write_bytes(original[:start] + data.draw(st.binary(max_size=100)) + original[stop:])
    try:
        loaded = load_neighbors(tmp_path, "k")
    except CacheError:
        return
    assert loaded is not None
    np.testing.assert_array_equal(loaded[0], index)
    assert loaded[2] == {"metric": "cosine", "k": 3}


def test_a_fuzzed_cache_was_a_cache(folder: Path, tmp_path: Path) -> None:
    """The tests above start from a cache that is right."""
    assert verify(folder) == []
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    check(copy, read_all(folder))
