"""Words for clusters: as the model scores them, no word twice, and nothing is named without being asked."""

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import PhotoRun
from PIL import Image
from tiny_clip import write_clip
from transformers import CLIPModel, CLIPProcessor
from typer.testing import CliRunner

from temi.cli import app
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import set_names
from temi.pipeline.results.suggest import _one_to_one, _words

TEMI = Path(sys.executable).with_name("temi")
WORDS = ["red", "green", "blue", "a dog", "cat"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def names(run: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TEMI, "names", run, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.long
def test_a_table_of_suggestions_equals_the_models_own_scores(photo_run: PhotoRun, clip: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(photo_run.run, run)
    (tmp_path / "words.txt").write_text("\n".join([*WORDS, "cat", ""]))
    made = names(run, "--suggest", clip, "--words", tmp_path / "words.txt")
    assert made.returncode == 0, made.stderr
    rows = list(csv.DictReader(io.StringIO(made.stdout)))
    chosen = [row["name"] for row in rows]
    assert len(set(chosen)) == len(chosen) == 3
    assert FinishedRun(run).names == ["", "", ""]  # nothing is named without being asked

    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    finished = FinishedRun(run)
    table = finished.assignments
    best = table[table["cluster"] == 0].sort_values("confidence", ascending=False, kind="stable")["key"][:16]
    pictures = [Image.open(photo_run.photos / key).convert("RGB") for key in best]
    given = processor(text=[f"a photo of a {w}" for w in WORDS], images=pictures, return_tensors="pt", padding=True)
    with torch.inference_mode():
        expected = model(**given).logits_per_image.softmax(-1).mean(0).numpy()
    assert float(rows[0]["score"]) == pytest.approx(expected[WORDS.index(rows[0]["name"])], abs=2e-3)
    rest = [score for word, score in zip(WORDS, expected, strict=True) if word != rows[0]["name"]]
    assert float(rows[0]["runner_up_score"]) == pytest.approx(max(rest), abs=2e-3)

    (tmp_path / "names.csv").write_text(made.stdout)
    assert set_names(run, tmp_path / "names.csv", 3) == chosen
    again = names(run, "--suggest", clip, "--words", tmp_path / "words.txt")  # all have names: no model is needed
    assert [row["name"] for row in csv.DictReader(io.StringIO(again.stdout))] == chosen


def test_no_word_twice() -> None:
    likely = np.array([[0.6, 0.3, 0.1], [0.7, 0.2, 0.1]])
    assert _one_to_one(likely) == [(0, 1), (1, 0)]  # both want the first


def test_imagenets_names_are_there() -> None:
    assert len(_words(None)) > 990
    assert "goldfish" in _words(None)


def test_mistakes_are_sentences(photo_run: PhotoRun, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a\n")
    (tmp_path / "empty").mkdir()
    for arguments, sentence in [
        (["--words", tmp_path / "one.txt"], "--words needs --suggest MODEL"),
        (["--suggest", clip, "--words", tmp_path / "one.txt"], "words to choose from: 1, clusters without a name: "),
        (["--suggest", clip, "--words", tmp_path / "gone.txt"], "no such file"),
        (["--suggest", tmp_path / "empty"], "cannot be loaded as a model of images and words"),
        (["--suggest", photo_run.weights], "cannot be loaded|knows no words"),
    ]:
        made = CliRunner().invoke(app, ["names", str(photo_run.run), *map(str, arguments)])
        assert (made.exit_code, made.stdout) == (2, "")
        assert any(part in made.stderr for part in sentence.split("|")), made.stderr
