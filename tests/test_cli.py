"""The installed `temi` script, as a user runs it: the main job from a folder of images, and what mistakes say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
from typer.testing import CliRunner

from temi.cli import app

TEMI = Path(sys.executable).with_name("temi")


def temi(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TEMI, *map(str, arguments)], capture_output=True, text=True, timeout=1800)


def succeed(*arguments: object) -> str:
    done = temi(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos of three plain colors, one of them broken, and a tiny DINOv2 of random weights."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for name, color in {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 200)}.items():
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(color + rng.normal(0, 12, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number:02d}.jpg")
    broken = folder / "photos/red/07.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    torch.manual_seed(0)
    tiny = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(tiny).save_pretrained(folder / "encoder")
    square = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def cache(work: Path) -> Path:
    """The photos, embedded with two views."""
    out = work / "cache"
    said = succeed("embed", work / "photos", "--out", out, "--set", f"embed.backbone={work / 'encoder'}")
    assert "60 images x 32, 2 views each, 1 unreadable" in said
    assert f"next: temi train-heads {out}" in said
    return out


QUICK = ("--set", "heads.count=2", "--set", "neighbors.k=5", "--set", "train.min_steps=30", "--set", "train.epochs=0")


@pytest.mark.slow
def test_from_a_folder_of_photos_to_scored_clusters(work: Path, cache: Path) -> None:
    run = work / "run"
    said = succeed("train-heads", cache, "--clusters", 3, "--out", run, *QUICK)
    assert "59 images" in said
    assert "3 of 3 clusters used" in said
    expected = json.loads((run / "training.json").read_text())["expected_accuracy"]
    assert expected > 0.9
    assert f"about {expected:.0%} of the images are expected to be where they belong" in said
    table = pd.read_csv(run / "assignments.csv")
    assert len(table) == 59
    said = succeed("evaluate", run)
    assert "TEMI" in said
    assert "k-means" in said
    assert f"expected accuracy {expected:.3f}" in said
    result = json.loads((run / "result.json").read_text())
    assert result["parts"][0]["rows"][0]["acc"] > 0.9
    again = succeed("train-heads", cache, "--clusters", 3, "--out", run, *QUICK)  # finished: nothing to do
    assert "59 images" in again
    assert (cache / "failures.csv").read_text().count("red/07.jpg") == 1


LOCAL = "--set", "embed.backbone=./an-encoder"  # a folder: no hub is asked


@pytest.mark.slow
def test_mistakes_are_one_sentence_and_exit_code_2(work: Path, cache: Path) -> None:
    out, empty = work / "nothing", work / "empty"
    empty.mkdir()
    cases = {
        ("embed", work / "no-such-folder", "--out", out, *LOCAL): "no-such-folder",
        ("embed", empty, "--out", out, *LOCAL): "empty",
        (
            "embed",
            work / "photos",
            "--out",
            cache,
            "--set",
            f"embed.backbone={work / 'encoder'}",
            "--set",
            "embed.seed=7",
        ): "seed",
        ("embed", work / "photos", "--out", out, "--shard", "3/3"): "--shard '3/3'",
        ("train-heads", work / "photos", "--out", out): "photos",
        ("train-heads", cache, "--clusters", 100, "--out", out): "heads.clusters = 100 is more than the 59 images",
        ("train-heads", cache, "--clusters", 3, "--out", out, "--set", "neighbors.k=59"): "neighbors.k = 59",
        ("train-heads", cache, "--clusters", 3, "--out", out, "--set", "heads.clusters=4"): "leave one out",
        ("train-heads", cache, "--out", out, "--set", "heads.size=3"): "unknown setting heads.size",
        ("train-heads", cache, "--out", out, "--config", work / "none.toml"): "none.toml does not exist",
        ("evaluate", work / "photos"): "is not a finished run",
    }
    for arguments, sentence in cases.items():
        done = CliRunner().invoke(app, list(map(str, arguments)))
        one_sentence(sentence, done.exit_code, done.stderr)
    for arguments in {words[0]: words for words in cases}.values():  # and one of each verb by the installed script
        script = temi(*arguments)
        one_sentence(cases[arguments], script.returncode, script.stderr)
    assert not out.exists()  # a mistake leaves nothing behind


def one_sentence(sentence: str, code: int, stderr: str) -> None:
    """A mistake ended with code 2 and one line that holds `sentence`."""
    assert code == 2, stderr
    assert sentence in stderr
    assert "Traceback" not in stderr
    assert len([line for line in stderr.splitlines() if line.startswith("temi: ")]) == 1, stderr


@pytest.mark.slow
def test_a_model_hub_that_cannot_be_reached_is_one_sentence(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(work / "no-models"))
    done = temi("embed", work / "photos", "--out", work / "hub")
    assert done.returncode == 2
    assert "facebook/dinov2-base cannot be loaded from the model hub" in done.stderr
    assert "efficientnet-lite0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_damaged_cache_is_named(work: Path, cache: Path) -> None:
    shard = cache / "shard-00000.h5"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    try:
        done = temi("train-heads", cache, "--clusters", 3, "--out", work / "damaged")
    finally:
        shard.write_bytes(whole)
    assert done.returncode == 2
    assert "shard-00000" in done.stderr


def test_help_names_the_verbs() -> None:
    said = succeed("--help")
    for verb in ("embed", "train-heads", "evaluate"):
        assert verb in said
