"""Exports hold every image once under its cluster, leave originals alone, and never write outside their folder."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mixtures import mixture, write_cache
from photos import HOSTILE, PhotoRun, short
from typer.testing import CliRunner

from temi.cli import app
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError
from temi.pipeline.images import open_source
from temi.pipeline.images.grown import GrownImages
from temi.pipeline.images.left_out import EXPORTED
from temi.pipeline.registry import EXPORTS
from temi.pipeline.results.export import export_datasets, export_folders, export_table, folder_name, inside
from temi.pipeline.results.fiftyone import export_fiftyone
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.formats import Wanted
from temi.pipeline.runs.train import train_heads


@pytest.fixture
def finished(photo_run: PhotoRun) -> FinishedRun:
    return FinishedRun(photo_run.run)


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_tables(finished: FinishedRun, tmp_path: Path, kind: str) -> None:
    assert export_table(finished, tmp_path / "out", kind) == 44
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[kind]
    found = read(tmp_path / "out")
    assert list(found.columns) == ["key", "cluster", "name", "confidence"]
    assert found["key"].tolist() == finished.assignments["key"].tolist()
    assert f"red/{HOSTILE}" in set(found["key"])
    assert found["cluster"].tolist() == finished.assignments["cluster"].tolist()
    assert (found["name"] == "cluster " + found["cluster"].astype(str)).all()


@pytest.mark.parametrize("link", ["symlink", "hardlink", "copy"])
def test_folders_hold_every_image_once(finished: FinishedRun, photo_run: PhotoRun, tmp_path: Path, link: str) -> None:
    before = {path: path.read_bytes() for path in photo_run.photos.rglob("*.jpg")}
    assert export_folders(finished, tmp_path / "out", link) == 44
    for key, cluster in zip(finished.assignments["key"], finished.assignments["cluster"], strict=True):
        copy, original = tmp_path / "out" / f"{cluster:04d}" / key, photo_run.photos / key
        assert copy.read_bytes() == original.read_bytes()
        assert copy.is_symlink() == (link == "symlink")
        assert os.path.samefile(copy, original) == (link != "copy")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 44 + 1  # and what tells `temi embed` that temi made the folder
    assert [path.name for path in files if path.name.startswith(".")] == [EXPORTED]
    assert {path: path.read_bytes() for path in photo_run.photos.rglob("*.jpg")} == before


@pytest.fixture
def thinned(photo_run: PhotoRun, finished: FinishedRun, tmp_path: Path) -> FinishedRun:
    """The run beside a copy of its photos and cache where the first photo was deleted, which `temi embed` has seen."""
    shutil.copytree(photo_run.photos, tmp_path / "photos")
    shutil.copytree(finished.cache.folder, tmp_path / "cache")
    run = FinishedRun(photo_run.run, tmp_path / "cache")
    assert run.trained["row"].iloc[0] == 0
    (tmp_path / "photos" / run.trained["key"].iloc[0]).unlink()
    settings = {"backbone": str(photo_run.weights), "views": 0, "batch_size": 8, "workers": 0, "device": "cpu"}
    embed(str(tmp_path / "photos"), tmp_path / "cache", EmbedConfig.model_validate(settings))
    return run


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "copy", "datasets", "fiftyone"])
def test_an_image_that_is_no_longer_there_is_left_out_and_named(
    thinned: FinishedRun, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, gone = tmp_path / "out", thinned.trained["key"].iloc[0]
    if kind == "datasets":
        assert export_datasets(thinned, out) == 43
        assert gone not in set(pd.read_parquet(out)["key"])
    elif kind == "fiftyone":
        assert export_fiftyone(thinned, out, "symlink") == 43
        assert len(json.loads((out / "labels.json").read_text())["labels"]) == 43
    else:
        assert export_folders(thinned, out, kind) == 43
        assert sum(path.suffix == ".jpg" and path.exists() for path in out.rglob("*")) == 43
    said = f"left out: 1 image that is no longer there or cannot be read: {gone}"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert "43 of 44 images in 3 clusters" in EXPORTS["folders"](thinned, tmp_path / "more", Wanted())


@pytest.mark.parametrize("export", [export_datasets, partial(export_folders, link="symlink")])
def test_where_no_image_is_left_nothing_is_written(
    thinned: FinishedRun, tmp_path: Path, export: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrownImages, "path", lambda images, row: tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match=r"none of the 44 images of .* can be read any more; restore them"):
        export(thinned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_into_the_photos_is_not_embedded(thinned: FinishedRun, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    export_folders(thinned, photos / "sorted", "copy")
    export_fiftyone(thinned, photos / "blue/fiftyone", "copy")
    images = open_source(str(photos), max_pixels=10**6)
    assert len(images.keys) == 44  # one of them is broken
    assert set(images.skipped) == {(name, "folder that temi exported") for name in ("sorted", "blue/fiftyone")}
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        export_folders(thinned, photos / "sorted", "copy")
    (photos / "sorted/mine.jpg").write_bytes((photos / "red/1.jpg").read_bytes())  # a person uses the folder
    assert len(open_source(str(photos), max_pixels=10**6).keys) > 44


def test_a_folder_in_use_or_other_images_are_refused(finished: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        export_folders(finished, tmp_path, "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match=r"are not those that .* was made from; give the original images"):
        export_folders(finished, tmp_path / "out", "copy", "digits")
    with pytest.raises(UserError, match="does not exist"):
        export_folders(finished, tmp_path / "out", "copy", str(tmp_path / "gone"))


def test_photos_that_moved_are_asked_for(thinned: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "photos").rename(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"photos, where .* were, does not exist; if they moved, give .* by --images"):
        export_folders(thinned, tmp_path / "out", "copy")
    assert export_folders(thinned, tmp_path / "out", "copy", str(tmp_path / "pictures")) == 43


def test_a_cache_from_elsewhere_asks_for_its_images(tmp_path: Path) -> None:
    train_heads(write_cache(tmp_path / "cache", mixture(rows=60)[0]), short(), tmp_path / "run")
    with pytest.raises(UserError, match="does not say where its images are; give them by --images"):
        export_folders(FinishedRun(tmp_path / "run"), tmp_path / "out", "symlink")


@given(st.text())
@example("..")
@example("/etc/passwd")
@example("a/../../b")
@example("a//b")
@example("")
def test_no_key_leads_out_of_the_folder(key: str) -> None:
    root = Path("/exports/0001")
    try:
        target = inside(root, key)
    except UserError:
        return
    assert Path(os.path.normpath(target)).is_relative_to(root)
    assert Path(os.path.normpath(target)) != root


@given(st.text(max_size=200))
@example("../../etc")
@example("a/b\\c:d\0\n")
@example("ä" * 120)
def test_a_folder_name_is_one_short_plain_part(name: str) -> None:
    part = folder_name(7, name)
    assert part.startswith("0007")
    assert not set(part) & set('/\\:\0\n\r<>|*?"')
    assert not part.endswith((" ", "."))
    assert len(part.encode()) <= 90


@pytest.mark.filterwarnings("ignore")  # of the other package
def test_hugging_face_datasets_opens_the_folder(
    finished: FinishedRun, photo_run: PhotoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("temi.pipeline.results.export.SHARD_BYTES", 40_000)
    export_datasets(finished, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.parquet"))) > 1
    opened = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "hf"))
    assert opened["key"][:] == finished.assignments["key"].tolist()
    assert opened["cluster"][:] == finished.assignments["cluster"].tolist()
    assert opened.features["cluster"].names == ["0000", "0001", "0002"]
    assert opened[0]["image"].size == (200, 120)


@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize(
    "kind",
    ["linear", pytest.param("published", marks=pytest.mark.long), pytest.param("mlp-bn", marks=pytest.mark.long)],
)
def test_onnx_computes_what_torch_does(tmp_path: Path, kind: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from temi.pipeline.results.onnx import export_onnx

    embedding, _ = mixture(rows=200)
    config = short(f"heads.kind={kind}", "train.device=cpu")  # a model is exported from there
    model = train_heads(write_cache(tmp_path / "cache", embedding), config, tmp_path / "run")
    assert export_onnx(model, tmp_path / "model.onnx") < 1e-5
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    probability, cluster, confidence = session.run(None, {"embedding": embedding.astype(np.float32)})
    expected = model.predict_proba(torch.from_numpy(embedding)).numpy()
    np.testing.assert_allclose(probability, expected, atol=1e-5)
    np.testing.assert_array_equal(cluster, expected.argmax(1))
    np.testing.assert_allclose(confidence, expected.max(1), atol=1e-5)


def test_an_onnx_file_that_differs_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("temi.pipeline.results.onnx")
    pytest.importorskip("onnxscript")
    config = short("train.device=cpu")
    model = train_heads(write_cache(tmp_path / "cache", mixture(rows=60)[0]), config, tmp_path / "run")
    monkeypatch.setattr(module, "_difference", lambda *_: 0.5)
    with pytest.raises(UserError, match=r"differs from the model by 0.5"):
        module.export_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_the_command(photo_run: PhotoRun, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    result = CliRunner().invoke(app, ["export", str(photo_run.run), "--format", "json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "44 images in 3 clusters" in result.stdout
    assert len(json.loads(out.read_text())) == 44
    result = CliRunner().invoke(app, ["export", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 2
    assert result.stderr.startswith("temi: ")
