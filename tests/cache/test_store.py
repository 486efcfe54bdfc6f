import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_manifest, shard_content, write_cache

from temi.cache import CacheError, EmbeddingCache, ShardWriter


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_what_was_written_is_read_back(finished: Path) -> None:
    manifest = make_manifest()
    cache = EmbeddingCache.open(finished)
    assert (cache.rows, cache.dim, cache.views) == (20, 6, 2)
    assert cache.classes == ("cat", "dog", "Äffchen")
    assert cache.splits == {"train": (0, 10), "test": (10, 20)}
    written = [shard_content(manifest, shard) for shard in manifest.shards]
    assert cache.keys == [key for content in written for key in content["keys"]]
    np.testing.assert_array_equal(cache.labels, np.concatenate([content["labels"] for content in written]))
    assert cache.labels.dtype == np.int32
    for read, name in ((cache.embedding(), "embedding"), (cache.view_embedding(), "views")):
        expected = np.concatenate([content[name] for content in written])
        expected[[3, 8]] = 0
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == np.float16


@pytest.mark.parametrize("verified", [False, True])
def test_every_range_of_rows_equals_the_slice_of_the_whole(finished: Path, verified: bool) -> None:
    whole = EmbeddingCache.open(finished)
    embedding, views = whole.embedding(), whole.view_embedding()
    for start in range(0, 21, 3):
        for stop in range(start, 21, 2):
            cache = whole if verified else EmbeddingCache.open(finished)
            np.testing.assert_array_equal(cache.embedding(start, stop), embedding[start:stop])
            np.testing.assert_array_equal(cache.view_embedding(start, stop), views[start:stop])


@pytest.mark.parametrize("rows", [slice(0, None), slice(1, 3)])
def test_a_shard_that_changes_while_the_cache_is_open_is_noticed(copy: Path, rows: slice) -> None:
    cache = EmbeddingCache.open(copy)
    cache.embedding()
    assert cache.embedding(1, 3).shape == (2, 6)
    shard = copy / "shard-00000.h5"
    content = bytearray(shard.read_bytes())
    content[content.index(cache.embedding(1, 2).tobytes())] ^= 1
    before = shard.stat()
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # the clock of some file systems is coarse
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(CacheError, match="the bytes of embedding are not those that were written"):
            cache.embedding(rows.start, rows.stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 21)])
def test_rows_outside_are_the_callers_mistake(finished: Path, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="of 20"):
        EmbeddingCache.open(finished).embedding(start, stop)


def test_many_readers_at_once(finished: Path) -> None:
    cache = EmbeddingCache.open(finished)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda start: cache.embedding(start, 20), [0, 3, 7, 9] * 5))
    for values, start in zip(read, [0, 3, 7, 9] * 5, strict=True):
        np.testing.assert_array_equal(values, cache.embedding()[start:])


def test_digest_identifies_the_embeddings(finished: Path, tmp_path: Path) -> None:
    digest = EmbeddingCache.open(finished).digest
    assert write_cache(tmp_path / "same").digest == digest
    assert write_cache(tmp_path / "other", make_manifest(images="f" * 32)).digest != digest


def test_an_unfinished_cache_is_named_so_with_what_to_do(tmp_path: Path) -> None:
    manifest = make_manifest()
    with ShardWriter.open(tmp_path, manifest) as writer:
        writer.write(manifest.shards[0], **shard_content(manifest, manifest.shards[0]))
    with pytest.raises(CacheError, match=r"2 of 3 shards are missing, from shard-00001 on; rerun the command"):
        EmbeddingCache.open(tmp_path)


def test_a_missing_folder_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not an embedding cache"):
        EmbeddingCache.open(tmp_path / "nowhere")


def test_a_read_only_cache_can_be_read(copy: Path) -> None:
    for path in copy.iterdir():
        path.chmod(0o444)
    copy.chmod(0o555)
    try:
        cache = EmbeddingCache.open(copy)
        assert cache.embedding().shape == (20, 6)
        assert cache.verify() == []
    finally:
        copy.chmod(0o755)


def test_verify_names_every_problem_at_once(copy: Path) -> None:
    cache = EmbeddingCache.open(copy)
    for name in ("shard-00000.h5", "shard-00002.h5"):
        data = bytearray((copy / name).read_bytes())
        data[-3] ^= 4
        (copy / name).write_bytes(data)
    (copy / "shard-00009.h5").write_bytes(b"stray")
    (copy / "shard-00001.json").unlink()
    problems = cache.verify()
    assert len(problems) == 4
    assert "shard-00000.h5 is damaged: the bytes of views" in problems[0]
    assert "shard-00001.h5 is not done" in problems[1]
    assert "shard-00002.h5 is damaged" in problems[2]
    assert "shard-00009.h5 is no part" in problems[3]


def test_verify_misses_no_wrong_failures_table(copy: Path) -> None:
    (copy / "failures.csv").write_text("row,key,reason\n")
    assert "does not list" in EmbeddingCache.open(copy).verify()[0]
    (copy / "failures.csv").unlink()
    assert "missing" in EmbeddingCache.open(copy).verify()[0]


def test_the_cache_package_needs_no_torch_and_no_pipeline() -> None:
    heavy = ("torch", "transformers", "temi.pipeline", "datasets")
    code = f"import sys, temi.cache; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
