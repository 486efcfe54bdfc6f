import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import FAILURES, contents, make_manifest, shard_content, write_cache
from test_fingerprint import CHANGES

from temi.cache import CacheError, EmbeddingCache, Fingerprint, Manifest, ShardWriter, plan_shards


def test_bytes_are_a_function_of_the_content(tmp_path: Path) -> None:
    write_cache(tmp_path / "one")
    time.sleep(1.1)  # HDF5 keeps times in seconds
    write_cache(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_finished_cache_holds_no_other_files(tmp_path: Path) -> None:
    write_cache(tmp_path)
    shards = [f"shard-0000{index}{suffix}" for index in range(3) for suffix in (".h5", ".json")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failures.csv", "manifest.json", *shards]


def test_resume_continues_where_it_stopped_and_gives_the_same_bytes(tmp_path: Path) -> None:
    manifest = make_manifest()
    write_cache(tmp_path / "whole", manifest)
    with ShardWriter.open(tmp_path / "resumed", manifest) as writer:
        shard = writer.pending()[1]
        writer.write(shard, **shard_content(manifest, shard))
        assert [owed.index for owed in writer.pending()] == [0, 2]
        assert writer.finish() is None
    write_cache(tmp_path / "resumed", manifest)
    assert contents(tmp_path / "whole") == contents(tmp_path / "resumed")


def test_workers_share_the_shards_without_overlap(tmp_path: Path) -> None:
    manifest = make_manifest(rows=50)
    write_cache(tmp_path / "one", manifest)
    writers = [ShardWriter.open(tmp_path / "many", manifest) for _ in range(3)]
    owned = [writer.pending(worker, 3) for worker, writer in enumerate(writers)]
    assert sorted(shard.index for shards in owned for shard in shards) == list(range(8))
    assert all(shard.index % 3 == worker for worker, shards in enumerate(owned) for shard in shards)
    for writer, shards in zip(writers, owned, strict=True):
        for shard in shards:
            writer.write(shard, **shard_content(manifest, shard))
    finished = [writer.finish() for writer in writers]
    assert all(isinstance(cache, EmbeddingCache) for cache in finished)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


@pytest.mark.parametrize(("worker", "workers"), [(1, 1), (-1, 2), (0, 0)])
def test_a_worker_that_does_not_exist_is_refused(tmp_path: Path, worker: int, workers: int) -> None:
    with pytest.raises(ValueError, match="count from 0"):
        ShardWriter.open(tmp_path, make_manifest()).pending(worker, workers)


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "dtype"])  # one dtype so far
def test_resume_with_another_setting_refuses_and_names_it(tmp_path: Path, name: str) -> None:
    write_cache(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CacheError, match=rf"other settings \({name}"):
        ShardWriter.open(tmp_path, make_manifest(**{name: CHANGES[name]}))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "change"),
    [("dim", {"dim": 7}), ("rows per shard", {"shards": plan_shards(20, 5)}), ("classes", {"classes": ("cat",)})],
)
def test_resume_with_another_plan_refuses_and_names_it(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    ShardWriter.open(tmp_path, make_manifest())
    with pytest.raises(CacheError, match=name):
        ShardWriter.open(tmp_path, replace(make_manifest(), **change))


def test_overwrite_deletes_the_cache_and_nothing_else(tmp_path: Path) -> None:
    write_cache(tmp_path)
    (tmp_path / "neighbors").mkdir()
    (tmp_path / "neighbors" / "k.h5").write_bytes(b"old")
    (tmp_path / "neighbors" / "start-1.safetensors").write_bytes(b"old")
    (tmp_path / "neighbors" / "notes.txt").write_text("mine")
    (tmp_path / ".hidden").write_text("mine")
    manifest = make_manifest(pooling="mean", rows=6)
    with ShardWriter.open(tmp_path, manifest, overwrite=True) as writer:
        assert len(writer.pending()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".hidden",
        "manifest.json",
        "notes.txt",
    ]
    assert Manifest.read(tmp_path) == manifest


def test_a_folder_of_other_things_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(CacheError, match=r"holds holiday\.jpg.*choose a new folder"):
            ShardWriter.open(tmp_path, make_manifest(), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot create the folder"):
        ShardWriter.open(tmp_path / "file", make_manifest())


def test_two_writers_on_one_shard_the_second_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest()
    first = ShardWriter.open(tmp_path, manifest)
    shard = first.pending()[0]
    second = ShardWriter.open(tmp_path, manifest)
    with pytest.raises(CacheError, match=r"another process is writing .*shard-00000"):
        second.pending()
    with pytest.raises(CacheError, match=r"another process is writing .*shard-00000"):
        second.write(shard, **shard_content(manifest, shard))
    with pytest.raises(CacheError, match=r"another process is writing"):
        ShardWriter.open(tmp_path, manifest, overwrite=True)
    first.write(shard, **shard_content(manifest, shard))
    with pytest.raises(CacheError, match="just written by another process"):
        second.write(shard, **shard_content(manifest, shard))
    with pytest.raises(CacheError, match=r"shard-00001"):  # the next one is the first writer's, too
        second.pending()
    first.close()
    assert [owed.index for owed in second.pending()] == [1, 2]


def test_a_writer_in_another_process_is_refused_until_it_dies(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[2]); from synthetic import *\n"
        "w = ShardWriter.open(pathlib.Path(sys.argv[1]), make_manifest()); w.pending(); print('claimed', flush=True)\n"
        "sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(CacheError, match="another process"):
            ShardWriter.open(tmp_path, make_manifest()).pending()
        other.kill()
    assert len(list(tmp_path.glob("*.lock"))) == 1  # left behind, but nobody's
    write_cache(tmp_path)
    assert list(tmp_path.glob("*.lock")) == []


def test_workers_of_a_killed_writer_do_not_keep_its_claim(tmp_path: Path) -> None:
    """Processes that decode images are forks of the writer, and notice its death seconds later."""
    code = (
        "import os, sys, time, pathlib; sys.path.insert(0, sys.argv[2]); from synthetic import *\n"
        "w = ShardWriter.open(pathlib.Path(sys.argv[1]), make_manifest()); w.pending(); worker = os.fork()\n"
        "if not worker: print(os.getpid(), flush=True)\n"  # it runs, and has forgotten the claim
        "time.sleep(60)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        worker = int(writer.stdout.readline())
        try:
            with pytest.raises(CacheError, match="another process"):
                ShardWriter.open(tmp_path, make_manifest()).pending()
            writer.kill()
            writer.wait()
            assert len(ShardWriter.open(tmp_path, make_manifest()).pending()) == 3
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_broken_image_keeps_its_row_with_zeros(tmp_path: Path) -> None:
    manifest = make_manifest()
    content = shard_content(manifest, manifest.shards[0])
    content["embedding"][3] = np.nan  # whatever the caller left there
    before = content["embedding"].copy()
    with ShardWriter.open(tmp_path, manifest) as writer:
        writer.write(manifest.shards[0], **content)
    np.testing.assert_array_equal(content["embedding"], before)
    cache = write_cache(tmp_path, manifest)
    assert np.flatnonzero(~cache.ok).tolist() == sorted(FAILURES)
    assert not cache.embedding()[[3, 8]].any()
    assert not cache.view_embedding()[[3, 8]].any()
    assert cache.embedding()[[0, 1, 2, 4]].any(axis=1).all()
    assert cache.verify() == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["embedding", "views"])
def test_values_that_are_not_finite_are_refused_with_the_image_named(tmp_path: Path, name: str, bad: float) -> None:
    manifest = make_manifest()
    content = shard_content(manifest, manifest.shards[0])
    content[name][5] = bad
    with (
        ShardWriter.open(tmp_path, manifest) as writer,
        pytest.raises(CacheError, match=r"bilder/größe 5\.jpg \(row 5\) is not finite.*fp32"),
    ):
        writer.write(manifest.shards[0], **content)
    assert list(tmp_path.glob("*.h5*")) == []


@pytest.mark.parametrize(
    "change",
    [
        {"embedding": np.zeros((7, 5), np.float16)},
        {"embedding": np.zeros((6, 6), np.float16)},
        {"embedding": np.zeros((7, 6), np.float32)},
        {"views": np.zeros((7, 1, 6), np.float16)},
        {"views": np.zeros((7, 2, 6), np.float32)},
        {"keys": ["a"] * 6},
        {"labels": np.zeros(6, np.int32)},
        {"labels": np.zeros(7, np.int64)},
        {"labels": np.full(7, 3, np.int32)},
        {"labels": np.full(7, -2, np.int32)},
        {"failures": {7: "row of the next shard"}},
        {"failures": {-1: "no row"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_arrays_that_do_not_fit_are_the_callers_mistake(tmp_path: Path, change: dict[str, Any]) -> None:
    manifest = make_manifest()
    content = {**shard_content(manifest, manifest.shards[0]), **change}
    with ShardWriter.open(tmp_path, manifest) as writer, pytest.raises(ValueError, match="shard") as caught:
        writer.write(manifest.shards[0], **content)
    assert not isinstance(caught.value, CacheError)
    assert list(tmp_path.glob("shard-*")) == []


def test_a_shard_of_another_plan_is_the_callers_mistake(tmp_path: Path) -> None:
    manifest = make_manifest()
    other = make_manifest(shard_rows=5)
    with ShardWriter.open(tmp_path, manifest) as writer, pytest.raises(ValueError, match="not in the plan"):
        writer.write(other.shards[1], **shard_content(other, other.shards[1]))


@pytest.mark.parametrize("key", ["\udcff.jpg", "a\0b.jpg", "x" * 70_000])
def test_a_name_that_cannot_be_kept_is_refused(tmp_path: Path, key: str) -> None:
    manifest = make_manifest()
    content = shard_content(manifest, manifest.shards[0])
    content["keys"][2] = key
    with ShardWriter.open(tmp_path, manifest) as writer, pytest.raises(CacheError, match="rename it"):
        writer.write(manifest.shards[0], **content)


def test_a_reason_that_is_not_unicode_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, failures={5: "bad marker \udcff in file"})
    assert cache.failures == {5: "bad marker ? in file"}
    assert cache.verify() == []


def test_long_and_empty_names_are_kept_whole(tmp_path: Path) -> None:
    manifest = make_manifest(rows=4)
    keys = ["", "ü" * 5000, "a b\n\t", "日本/語.png"]
    with ShardWriter.open(tmp_path, manifest) as writer:
        writer.write(manifest.shards[0], **{**shard_content(manifest, manifest.shards[0], {}), "keys": keys})
        cache = writer.finish()
    assert cache is not None
    assert cache.keys == keys


def test_a_cache_without_views(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, make_manifest(views=0, view_policy={}))
    assert cache.view_embedding().shape == (20, 0, 6)
    assert cache.view_embedding(3, 5).shape == (2, 0, 6)
    assert cache.verify() == []


def test_a_cache_without_rows(tmp_path: Path) -> None:
    manifest = make_manifest(rows=0)
    cache = write_cache(tmp_path, manifest)
    assert cache.embedding().shape == (0, 6)
    assert cache.keys == []
    assert cache.verify() == []


def test_fingerprint_of_a_resumed_cache_is_equal_after_reading(tmp_path: Path) -> None:
    manifest = make_manifest()
    ShardWriter.open(tmp_path, manifest)
    read = Manifest.read(tmp_path).fingerprint
    assert read == manifest.fingerprint
    assert isinstance(read, Fingerprint)
    assert read.digest == manifest.fingerprint.digest
