"""Exports that stopped go on, suffixes decide, and names that are not UTF-8 come through from embed to predict."""

import errno
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from photos import PhotoRun, short

from temi.cache import CacheError, EmbeddingCache
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError
from temi.pipeline.images import open_source
from temi.pipeline.images.left_out import EXPORTED
from temi.pipeline.report.pages import write_report
from temi.pipeline.results.export import LINKS, export_datasets, export_folders, export_table
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.formats import format_of
from temi.pipeline.results.predict import predict
from temi.pipeline.runs.train import train_heads


@pytest.fixture
def finished(photo_run: PhotoRun) -> FinishedRun:
    return FinishedRun(photo_run.run)


@pytest.mark.parametrize("link", ["symlink", "hardlink", "copy"])
def test_an_export_that_stopped_goes_on(
    finished: FinishedRun, tmp_path: Path, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, put, done = tmp_path / "out", LINKS[link], []

    def until_full(original: Path, target: Path) -> None:
        if len(done) == 20:
            target.write_bytes(b"part")
            raise OSError(errno.ENOSPC, "No space left on device")
        put(original, target)
        done.append(original)

    monkeypatch.setitem(LINKS, link, until_full)
    with pytest.raises(CacheError, match=r"cannot .* an image to .*: the disk is full"):
        export_folders(finished, out, link)
    monkeypatch.setitem(LINKS, link, put)
    with pytest.raises(UserError, match="holds part of another export"):
        export_datasets(finished, out)
    assert export_folders(finished, out, link) == 44
    files = [path for path in out.rglob("*") if not path.is_dir()]
    assert len(files) == 44 + 1
    assert [path.name for path in files if path.name.startswith(".")] == [EXPORTED]
    with pytest.raises(UserError, match="is not empty"):
        export_folders(finished, out, link)


def test_a_data_set_that_stopped_is_written_again(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("temi.pipeline.results.export.SHARD_BYTES", 50_000)
        tables = "temi.pipeline.results.export.pyarrow.parquet.write_table"
        patch.setattr(tables, lambda table, file, **options: (file.write(b"part"), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            export_datasets(finished, tmp_path / "out")
    assert export_datasets(finished, tmp_path / "out") == 44
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train-00000.parquet"]
    assert len(pd.read_parquet(tmp_path / "out")) == 44


@pytest.mark.parametrize(
    ("out", "asked", "kind"),
    [
        ("x.parquet", None, "parquet"),
        ("x.CSV", "csv", "csv"),
        ("x", "folders", "folders"),
        ("x.txt", "json", "json"),
        ("x.parquet", "embedding-atlas", "embedding-atlas"),
    ],
)
def test_the_suffix_decides(out: str, asked: str | None, kind: str) -> None:
    assert format_of(Path(out), asked) == kind


@pytest.mark.parametrize(("out", "asked"), [("x.parquet", "csv"), ("x.csv", "folders"), ("x", None), ("x.txt", None)])
def test_a_contradiction_of_suffix_and_format_is_refused(out: str, asked: str | None) -> None:
    with pytest.raises(UserError, match=out):
        format_of(Path(out), asked)


def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"a photo")
    with pytest.raises(UserError, match=r"photo\.jpg is there already .*; end it in \.csv"):
        format_of(tmp_path / "photo.jpg", "csv")
    (tmp_path / "table.csv").write_bytes(b"key\n")
    assert format_of(tmp_path / "table.csv", "csv") == "csv"


def test_names_that_are_not_utf8_come_through(photo_run: PhotoRun, tmp_path: Path) -> None:
    """Embed, train, export by link, copy and data set, report, and predict the file and its folder: one key."""
    photos = tmp_path / "photos"
    shutil.copytree(photo_run.photos / "red", photos)
    odd = os.fsencode(photos) + b"/caf\xe9.jpg"
    os.rename(photos / "0.jpg", odd)
    os.rename(photos / "1.jpg", photos / "carriage\rreturn.jpg")
    settings = EmbedConfig(backbone=str(photo_run.weights), views=0, batch_size=8, workers=0, device="cpu")
    embed(str(photos), tmp_path / "cache", settings)
    train_heads(EmbeddingCache.open(tmp_path / "cache"), short("heads.clusters=2"), tmp_path / "run")
    finished = FinishedRun(tmp_path / "run")
    origin = json.loads((tmp_path / "cache/source.json").read_text())
    assert {key: os.fsencode(path) for key, path in origin["files"].items()} == {"caf\\xe9.jpg": odd}
    data = Path(os.fsdecode(odd)).read_bytes()
    for link in ("symlink", "copy"):
        export_folders(finished, tmp_path / link, link)
        (found,) = (tmp_path / link).rglob("caf*")
        assert found.read_bytes() == data
    assert len(open_source(str(tmp_path / "symlink"), max_pixels=10**6).keys) == 15  # an export can be embedded again
    export_datasets(finished, tmp_path / "datasets")
    table = pd.read_parquet(tmp_path / "datasets/train-00000.parquet").set_index("key")
    assert table.loc["caf\\xe9.jpg", "image"]["bytes"] == data
    assert write_report(finished).stat().st_size > 10_000
    keys = {}
    for name, source in {"file": os.fsdecode(odd), "folder": str(photos)}.items():
        predict(tmp_path / "run", source, tmp_path / f"{name}.csv", backbone=str(photo_run.weights))
        keys[name] = set(pd.read_csv(tmp_path / f"{name}.csv")["key"])
    assert keys["file"] == {"caf\\xe9.jpg"}
    assert keys["file"] < keys["folder"]
    export_table(finished, tmp_path / "t.csv", "csv")
    for path in (tmp_path / "t.csv", tmp_path / "run/assignments.csv"):
        assert pd.read_csv(path)["key"].tolist() == finished.assignments["key"].tolist()
    assert "carriage\rreturn.jpg" in keys["folder"]


def test_the_config_of_a_run_names_no_encoder_that_it_did_not_have(photo_run: PhotoRun) -> None:
    text = (photo_run.run / "config.toml").read_text()
    assert "[embed]" not in text
    assert "backbone" not in text
    environment = json.loads((photo_run.run / "environment.json").read_text())
    assert environment["cache"]["fingerprint"]["backbone"] == "dinov2 (local folder)"
