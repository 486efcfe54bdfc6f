"""The examples run as they stand in the repository."""

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = ["start.kind=random", "heads.count=4", "train.min_steps=60", "train.epochs=0", "train.tensorboard=false"]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    sizes = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def test_what_pages_import_is_there() -> None:
    pages = [EXAMPLES.parent / "README.md", *EXAMPLES.parent.glob("docs/*.md")]
    lines = {line.strip() for page in pages for line in page.read_text().splitlines()}
    asked = [line for line in lines if re.fullmatch(r"import (temi|cache|pipeline)|from \S+ import [\w, ]+", line)]
    assert len(asked) > 5
    for line in asked:
        exec(line, {})


def test_every_example_is_run_here() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == [
        "cluster_a_folder",
        "embeddings_from_elsewhere",
        "sort_new_photos",
    ]


def test_a_folder_is_clustered_and_new_photos_are_sorted(tmp_path: Path, weights: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    for number in range(40):
        color = random.integers(0, 20, (40, 60, 3)) + np.array([200, 40, 90])[[number % 3, 1, 2]]
        Image.fromarray(color.astype(np.uint8)).save(photos / f"{number}.png")
    settings = [*SHORT, f"embed.backbone={weights}", "embed.views=0", "embed.workers=0", "neighbors.k=5"]
    page = example("cluster_a_folder").main(str(photos), tmp_path / "out", 3, settings)
    assert "39.png" in page.read_text(encoding="utf-8")
    table = example("sort_new_photos").main(tmp_path / "out/run", photos, tmp_path / "sorted", str(weights))
    links = [path for path in (tmp_path / "sorted").rglob("*.png") if path.is_symlink()]
    assert len(links) == len(table) == 40
    assert all(os.path.samefile(link, photos / link.name) for link in links)


@pytest.mark.slow
def test_embeddings_from_elsewhere() -> None:
    warm = [setting for setting in SHORT if setting != "start.kind=random"]
    assert example("embeddings_from_elsewhere").main(warm) > 0.7
