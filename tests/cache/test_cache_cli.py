"""`temi cache` through the installed console script."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import contents, make_manifest, shard_content, write_cache

from temi.cache import Manifest, ShardWriter
from temi.cache.kept import save_kept

TEMI = Path(sys.executable).with_name("temi")

pytestmark = pytest.mark.skipif(not TEMI.exists(), reason="temi is not installed in this environment")


def temi(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TEMI, "cache", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache")
    return tmp_path / "cache"


def test_info_prints_a_table_and_json(folder: Path) -> None:
    table = temi("info", folder)
    assert table.returncode == 0
    assert "facebook/dinov2-base" in table.stdout
    as_json = temi("info", folder, "--json")
    assert json.loads(as_json.stdout)["fingerprint"]["backbone"] == "facebook/dinov2-base"


def test_info_calls_only_what_cannot_be_read_unreadable(folder: Path) -> None:
    save_kept(folder / "neighbors", "copies", {"embeddings": "0" * 32}, {"x": np.zeros(3)})
    assert "copies 0.0 MB (copies-" in temi("info", folder).stdout
    (kept,) = (folder / "neighbors").glob("*.safetensors")
    kept.write_bytes(b"short")
    assert "copies 0.0 MB unreadable (copies-" in temi("info", folder).stdout


def test_verify_of_a_whole_cache(folder: Path) -> None:
    result = temi("verify", folder)
    assert result.returncode == 0
    assert "20 rows, every byte as written" in result.stdout


def test_verify_names_every_problem_and_fails(folder: Path) -> None:
    (folder / "shard-00000.h5").write_bytes(b"")
    (folder / "shard-00002.json").unlink()
    result = temi("verify", folder)
    assert result.returncode == 1
    assert "shard-00000.h5 is damaged" in result.stdout
    assert "shard-00002.h5 is not done" in result.stdout
    assert "2 problems" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["out", "out.parquet", "out.safetensors"])
def test_export_and_import_are_lossless(folder: Path, tmp_path: Path, name: str) -> None:
    assert temi("export", folder, tmp_path / name).returncode == 0
    result = temi("import", tmp_path / name, "--out", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    assert "2 unreadable" in result.stdout
    assert contents(tmp_path / "again") == contents(folder)


def test_who_exports_a_cache_that_grew_is_told_that_it_does_not_come_back(folder: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(folder)
    manifest.grown(manifest.fingerprint, 0, 8, classes=manifest.classes, removed=(3,)).write(folder)
    out = temi("export", folder, tmp_path / "out.parquet")
    assert (out.returncode, out.stderr.count("`temi cache import` refuses it")) == (0, 1)
    assert temi("import", tmp_path / "out.parquet", "--out", tmp_path / "again").returncode == 2


def test_merge(folder: Path, tmp_path: Path) -> None:
    manifest = make_manifest(rows=5, images="f" * 32)
    with ShardWriter.open(tmp_path / "other", manifest) as writer:
        for shard in writer.pending():
            content = shard_content(manifest, shard)
            writer.write(shard, **{**content, "keys": [f"other/{key}" for key in content["keys"]]})
        writer.finish()
    result = temi("merge", folder, tmp_path / "other", "--out", tmp_path / "merged")
    assert result.returncode == 0, result.stderr
    assert "25 rows x 6" in result.stdout
    assert temi("verify", tmp_path / "merged").returncode == 0


def test_join(folder: Path, tmp_path: Path) -> None:
    manifest = make_manifest(dim=4, backbone="other")
    with ShardWriter.open(tmp_path / "other", manifest) as writer:
        for shard in writer.pending():
            writer.write(shard, **shard_content(manifest, shard))
        writer.finish()
    result = temi("join", folder, tmp_path / "other", "--out", tmp_path / "joined")
    assert result.returncode == 0, result.stderr
    assert "20 rows x 10" in result.stdout
    assert temi("verify", tmp_path / "joined").returncode == 0


def test_mistakes_are_one_sentence_and_exit_code_2(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (broken / "manifest.json").write_text("{}")
    for arguments, message in [
        (("info", tmp_path / "empty"), "not an embedding cache"),
        (("verify", tmp_path / "nowhere"), "not an embedding cache"),
        (("verify", broken), "damaged or was edited"),
        (("export", folder, tmp_path / "out.xlsx"), "cannot export to .xlsx"),
        (("import", tmp_path / "none.npy", "--out", tmp_path / "c"), "does not exist"),
        (("merge", folder, folder, "--out", tmp_path / "c"), "different images only"),
        (("join", folder, "--out", tmp_path / "c"), "two caches or more"),
    ]:
        result = temi(*arguments)
        assert result.returncode == 2, arguments
        assert result.stderr.startswith("temi: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
