"""Disks that are full, limited, read-only or slow to say so."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xxhash
from synthetic import contents, make_manifest, write_cache

from temi.cache import CacheError, EmbeddingCache, ShardWriter, save_neighbors
from temi.cache.convert.export import export_cache
from temi.cache.files import file_digest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_sentence_and_the_run_resumes_when_there_is_space(small_disk: Path, tmp_path: Path) -> None:
    manifest = make_manifest(rows=200, dim=64, shard_rows=25)
    (small_disk / "hog").write_bytes(bytes(170_000))
    (tmp_path / "cache").symlink_to(small_disk / "cache")
    with pytest.raises(CacheError, match="the disk is full; free some space and rerun the same command"):
        write_cache(small_disk / "cache", manifest)
    assert list(small_disk.rglob("*.part")) == []
    done = list((small_disk / "cache").glob("shard-*.json"))
    assert 0 < len(done) < 8
    (small_disk / "hog").unlink()
    with ShardWriter.open(small_disk / "cache", manifest) as writer:
        assert len(writer.pending()) == 8 - len(done)
    assert write_cache(small_disk / "cache", manifest).verify() == []
    write_cache(tmp_path / "whole", manifest)
    assert contents(small_disk / "cache") == contents(tmp_path / "whole")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", range(10))
def test_whichever_write_fails_it_is_a_sentence_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: int
) -> None:
    """A run makes about 18 calls of fsync; each of the first ten fails once."""
    manifest = make_manifest()
    real, calls = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise OSError(error, os.strerror(error))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CacheError, match=r"cannot write .*(disk|space)"):
        write_cache(tmp_path / "cache", manifest)
    assert list((tmp_path / "cache").glob("*.part")) == []
    assert write_cache(tmp_path / "cache", manifest).verify() == []
    monkeypatch.undo()
    write_cache(tmp_path / "whole", manifest)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_a_limit_on_file_sizes_is_a_sentence(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    manifest = make_manifest(rows=2000, dim=64, shard_rows=2000)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(CacheError, match="larger than allowed"):
            write_cache(tmp_path, manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.glob("shard-*.[hp]*")) == []
    assert write_cache(tmp_path, manifest).verify() == []


def test_an_export_that_does_not_fit_leaves_nothing_behind(small_disk: Path, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", make_manifest(rows=800, dim=96))
    for name in ("out", "out.parquet", "out.safetensors"):
        with pytest.raises(CacheError, match="cannot write"):
            export_cache(cache, small_disk / name)
        assert list(small_disk.iterdir()) == []


@contextmanager
def ordinary_user() -> Iterator[None]:
    """The superuser may write anywhere, so be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_permission_is_a_sentence() -> None:
    with tempfile.TemporaryDirectory() as work:
        os.chmod(work, 0o755)
        folder = Path(work) / "cache"
        write_cache(folder)
        folder.chmod(0o555)
        graph = (np.zeros((20, 1), np.int32), np.zeros((20, 1), np.float16))
        with ordinary_user():
            for overwrite in (False, True):
                with pytest.raises(CacheError, match="permission denied"):
                    ShardWriter.open(folder, make_manifest(), overwrite=overwrite)
            with pytest.raises(CacheError, match="permission denied"):
                save_neighbors(folder / "neighbors", "k", *graph, {})
            with pytest.raises(CacheError, match="permission denied"):
                ShardWriter.open(folder / "new", make_manifest())
            assert EmbeddingCache.open(folder).verify() == []
        (folder / "shard-00001.h5").chmod(0o000)
        with ordinary_user(), pytest.raises(CacheError, match=r"cannot read .*shard-00001\.h5: permission denied"):
            EmbeddingCache.open(folder).embedding()
        folder.chmod(0o755)


def test_a_read_only_disk_can_be_read_and_says_so_when_written(small_disk: Path, tmp_path: Path) -> None:
    write_cache(small_disk / "cache")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    cache = EmbeddingCache.open(small_disk / "cache")
    assert cache.embedding().shape == (20, 6)
    assert cache.verify() == []
    graph = (np.zeros((20, 1), np.int32), np.zeros((20, 1), np.float16))
    with pytest.raises(CacheError, match=r"read-only; choose another folder"):
        save_neighbors(small_disk / "cache" / "neighbors", "k", *graph, {})
    save_neighbors(tmp_path / "run", "k", *graph, {})
    with pytest.raises(CacheError, match=r"read-only; choose another folder"):
        ShardWriter.open(small_disk / "cache", make_manifest(images="f" * 32), overwrite=True)


def test_a_digest_is_of_the_bytes_of_all_files_in_their_order(tmp_path: Path) -> None:
    parts = [np.random.default_rng(size).bytes(size) for size in (5_000_000, 0, 3)]  # more than a block, nothing, less
    paths = [tmp_path / str(place) for place in range(3)]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    assert file_digest(*paths) == xxhash.xxh3_128_hexdigest(b"".join(parts))
    assert file_digest(paths[0]) == xxhash.xxh3_128_hexdigest(parts[0])
    with pytest.raises(CacheError, match=r"cannot read .*no such file"):
        file_digest(paths[0], tmp_path / "none")
