"""Exports as other tools read them: by their own readers where those are installed, else by the documented format."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from photos import HOSTILE, PhotoRun
from PIL import Image
from typer.testing import CliRunner

from temi.cli import app
from temi.pipeline.errors import UserError
from temi.pipeline.registry import EXPORTS
from temi.pipeline.results.correct import correct
from temi.pipeline.results.corrections import Merge, Move, Note, Remove, Rename
from temi.pipeline.results.embedding_atlas import export_embedding_atlas
from temi.pipeline.results.fiftyone import export_fiftyone, read_fiftyone
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.lance import export_lance

TEMI = Path(sys.executable).with_name("temi")
GUIDE = Path(__file__).parents[3] / "docs/adding-an-export.md"


@pytest.fixture
def run(photo_run: PhotoRun, tmp_path: Path) -> FinishedRun:
    return FinishedRun(shutil.copytree(photo_run.run, tmp_path / "run"))


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """Samples by key, as FiftyOne's importer makes them of a folder and `dataset.write_json` writes them."""
    labels = json.loads((folder / "labels.json").read_text())
    paths = {path.stem: str(path) for path in (folder / "data").iterdir()}
    found = {}
    for name, label in labels["labels"].items():
        truth = {"_cls": "Classification", "tags": [], "label": label["label"], "confidence": label["confidence"]}
        sample = {"filepath": paths[name], "tags": [], "metadata": None, "ground_truth": truth | label["attributes"]}
        found[label["attributes"]["key"]] = sample
    return found


def write_json(path: Path, told: dict[str, dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"name": "mine", "media_type": "image", "samples": list(told.values())}))
    return path


@pytest.mark.parametrize("link", ["symlink", "copy"])
def test_fiftyone_finds_every_image_under_its_name(run: FinishedRun, photo_run: PhotoRun, link: str) -> None:
    correct(run, [Rename(names={1: "ones"}), Remove(keys=[run.trained["key"].iloc[0]])])
    out = run.folder.parent / "fiftyone"
    assert export_fiftyone(run, out, link) == 44
    found = samples(out)
    assert len(found) == 44
    for key, cluster in zip(run.assignments["key"], run.assignments["cluster"], strict=True):
        assert Path(found[key]["filepath"]).read_bytes() == (photo_run.photos / key).read_bytes()
        expected = {-1: "removed", 1: "ones"}.get(cluster, f"cluster {cluster}")
        assert found[key]["ground_truth"]["label"] == expected
    assert f"red/{HOSTILE}" in found
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        export_fiftyone(run, out, link)


def test_fiftyones_own_importer_opens_the_folder(run: FinishedRun, photo_run: PhotoRun, tmp_path: Path) -> None:
    importers = pytest.importorskip("fiftyone.utils.data.importers")
    export_fiftyone(run, tmp_path / "out", "symlink")
    folder = str(tmp_path / "out")
    importer = importers.FiftyOneImageClassificationDatasetImporter(folder)
    importer.setup()
    found = {label.key: (path, label) for path, _, label in importer}
    assert set(found) == set(run.trained["key"])
    for key, (path, label) in found.items():
        assert Path(path).read_bytes() == (photo_run.photos / key).read_bytes()
        assert label.label == f"cluster {run.assignments['cluster'][run.place[key]]}"


@pytest.mark.long
def test_labels_and_tags_come_back_as_corrections(run: FinishedRun, tmp_path: Path) -> None:
    correct(run, [Rename(names={1: "ones"})])
    export_fiftyone(run, tmp_path / "out", "symlink")
    told = samples(tmp_path / "out")
    keys = run.trained["key"][run.trained["cluster"] == 0].tolist()[:5]
    told[keys[0]]["tags"] = ["ones", "nice"]
    told[keys[1]]["ground_truth"]["label"] = "cluster 2"
    told[keys[2]]["ground_truth"]["tags"] = ["removed"]
    told[keys[3]]["tags"] = ["new: odd ones"]
    told[keys[4]]["ground_truth"]["label"] = "odd ones"
    told["x"] = {"filepath": "/x.jpg", "tags": ["ones"], "ground_truth": {"label": "a", "key": "x"}}
    told["y"] = {"filepath": "/y.jpg", "tags": ["ones"], "ground_truth": None}
    made = subprocess.run(
        [TEMI, "correct", run.folder, "--from", write_json(tmp_path / "fiftyone.json", told)],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert "1 sample of" in made.stdout
    run.forget_corrections()
    after = dict(zip(run.assignments["key"], run.assignments["cluster"], strict=True))
    assert [after[key] for key in keys] == [1, 2, -1, 3, 3]
    assert run.names == ["", "ones", "", "odd ones"]
    assert [note.keys for note in run.corrected.notes if note.text == "nice"] == [[keys[0]]]
    assert len(run.corrections) == 1 + 6
    assert read_fiftyone(run, tmp_path / "fiftyone.json").entries == []  # said already


def test_a_rename_and_a_merge_since_the_export_are_no_labels(run: FinishedRun, tmp_path: Path) -> None:
    export_fiftyone(run, tmp_path / "out", "symlink")
    told = samples(tmp_path / "out")
    correct(run, [Rename(names={0: "zeros"}), Merge(clusters=[0, 2])])
    assert read_fiftyone(run, write_json(tmp_path / "f.json", told)).entries == []
    key = run.trained["key"][run.trained["cluster"] == 1].iloc[0]
    told[key]["tags"] = ["zeros", "cluster 2"]
    entries = read_fiftyone(run, write_json(tmp_path / "f.json", told)).entries
    assert entries == [Move(keys=[key], to=0), Note(text="cluster 2", keys=[key])]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"samples": 3}', '{"samples": [3]}', '{"labels": {}}', "\x00"])
def test_another_file_is_refused(run: FinishedRun, tmp_path: Path, text: str) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(UserError, match=r"is not what `dataset.write_json` of FiftyOne writes"):
        read_fiftyone(run, tmp_path / "f.json")


@pytest.mark.parametrize(
    ("name", "sentence"), [("removed", "cannot be called 'removed'"), ("cluster 9", "'cluster 9'")]
)
def test_what_clusters_are_called_without_a_name_makes_none(
    run: FinishedRun, tmp_path: Path, name: str, sentence: str
) -> None:
    export_fiftyone(run, tmp_path / "out", "symlink")
    told = samples(tmp_path / "out")
    told[next(iter(told))]["tags"] = [f"new: {name}"]
    with pytest.raises(UserError, match=sentence):
        correct(run, read_fiftyone(run, write_json(tmp_path / "f.json", told)).entries)
    assert not (run.folder / "corrections.jsonl").exists()


def test_two_clusters_for_one_image_and_two_files_are_refused(run: FinishedRun, tmp_path: Path) -> None:
    export_fiftyone(run, tmp_path / "out", "symlink")
    told = samples(tmp_path / "out")
    key = next(iter(told))
    told[key]["tags"] = ["cluster 0", "cluster 1"]
    before = run.folder / "corrections.jsonl"
    with pytest.raises(UserError, match="is said to be both cluster 0 and cluster 1"):
        read_fiftyone(run, write_json(tmp_path / "f.json", told))
    for arguments in ([], [str(tmp_path / "f.json"), "--from", str(tmp_path / "f.json")]):
        refused = CliRunner().invoke(app, ["correct", str(run.folder), *arguments])
        assert refused.exit_code == 2
        assert "one of the two" in refused.stderr
    assert not before.exists()


def test_embedding_atlas_opens_the_map(run: FinishedRun, tmp_path: Path) -> None:
    correct(run, [Rename(names={1: "ones"})])
    out = tmp_path / "atlas.parquet"
    assert export_embedding_atlas(run, out) == ""
    found = pd.read_parquet(out)  # as its command reads it
    assert found["key"].tolist() == run.trained["key"].tolist()
    called = {0: "cluster 0", 1: "ones", 2: "cluster 2"}
    assert found["name"].tolist() == [called[cluster] for cluster in run.trained["cluster"]]
    assert np.isfinite(found[["x", "y", "confidence"]]).all(axis=None)
    neighbors, cosines = run.neighbors(5)
    for value, row, cosine in zip(found["neighbors"], neighbors, cosines, strict=True):
        assert set(value) == {"ids", "distances"}
        np.testing.assert_array_equal(value["ids"], row)
        np.testing.assert_allclose(value["distances"], 1 - cosine.astype(np.float32), atol=1e-3)
    assert Image.open(io.BytesIO(found["image"][3]["bytes"])).size == (128, 77)


def test_embedding_atlas_own_loader_takes_it(run: FinishedRun, tmp_path: Path) -> None:
    cli = pytest.importorskip("embedding_atlas.cli")
    metrics = pytest.importorskip("embedding_atlas.graph_metrics")
    export_embedding_atlas(run, tmp_path / "atlas.parquet")
    frame = cli.load_datasets([str(tmp_path / "atlas.parquet")])
    assert len(frame) == 44
    degree = metrics.compute_degree_columns(frame, neighbors="neighbors")
    assert int(np.sum(degree[1])) == frame["neighbors"].map(lambda value: len(value["ids"])).sum()


def test_lance_searches_the_embeddings(run: FinishedRun, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    assert export_lance(run, tmp_path / "out.lance") == 44
    opened = lance.dataset(str(tmp_path / "out.lance"))
    table = opened.to_table().to_pydict()
    assert table["key"] == run.assignments["key"].tolist()
    assert table["cluster"] == run.assignments["cluster"].tolist()
    np.testing.assert_array_equal(np.array(table["embedding"], dtype=np.float16), run.embeddings)
    query = run.embeddings[7].astype(np.float32)
    near = opened.to_table(nearest={"column": "embedding", "q": query, "k": 3}, columns=["key"])
    exact = np.linalg.norm(run.embeddings.astype(np.float32) - query, axis=1)
    assert near["key"].to_pylist()[0] == run.trained["key"][int(exact.argmin())]
    with pytest.raises(UserError, match="is there already"):
        export_lance(run, tmp_path / "out.lance")


def test_a_format_of_ones_own(run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "text.py").write_text(code)
    assert "csv" in EXPORTS
    monkeypatch.setattr(EXPORTS, "_entries", dict(EXPORTS._entries))
    arguments = ["export", str(run.folder), "--out", str(tmp_path / "lists"), "--format", "text"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "there is no format 'text'; choose one of csv, parquet, json, folders," in refused.stderr
    made = CliRunner().invoke(app, [*arguments, "--plugin", str(tmp_path / "text.py")])
    assert made.exit_code == 0, made.output
    assert sum(path.read_text().count("\n") for path in (tmp_path / "lists").iterdir()) == 44


def test_an_error_in_ones_own_format_says_where(
    run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "text.py"
    plugin.write_text(
        "from temi.pipeline.registry import EXPORTS\n"
        "def write(run, out, wanted):\n"
        "    return run.no_such_thing\n"
        "EXPORTS.register('text', write)\n"
    )
    monkeypatch.setattr(EXPORTS, "_entries", dict(EXPORTS._entries))
    arguments = ["export", str(run.folder), "--out", str(tmp_path / "out"), "--format", "text"]
    failed = CliRunner().invoke(app, [*arguments, "--plugin", str(plugin)])
    assert failed.exit_code == 2
    assert f"temi: the plugin {plugin} failed at line 3: AttributeError: " in failed.stderr
