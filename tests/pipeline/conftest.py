"""A run on real image files, made once for all tests of what a person does with a result."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from cache import EmbeddingCache
from pipeline.config import Config, EmbedConfig, load_config
from pipeline.embed import embed
from pipeline.run import train_heads

COLORS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (20, 40, 210)}
HOSTILE = "<img src=x onerror=alert(1)> & 'quoted' \"twice\".jpg"


@dataclass(frozen=True)
class PhotoRun:
    """Folders of the images, their cache, the weights and the run."""

    photos: Path
    cache: Path
    weights: Path
    run: Path


def short(*overrides: str) -> Config:
    """Settings of a training that takes a second."""
    base = ["heads.clusters=3", "heads.count=4", "neighbors.k=5", "train.batch_size=32", "train.epochs=0"]
    more = ["train.min_steps=60", "train.log_every=10", "train.tensorboard=false", "start.kind=random"]
    return load_config(None, [*base, *more, *overrides])


@pytest.fixture(scope="session")
def photo_run(tmp_path_factory: pytest.TempPathFactory) -> PhotoRun:
    """45 photos of three colors in three folders, one with a hostile name and one broken, embedded and clustered."""
    home = tmp_path_factory.mktemp("photo run")
    photos, weights = home / "photos", home / "weights"
    write_photos(photos)
    torch.manual_seed(0)
    sizes = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(weights)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(weights)
    settings = EmbedConfig(backbone=str(weights), views=0, batch_size=8, workers=0, device="cpu")
    embed(str(photos), home / "cache", settings)
    train_heads(EmbeddingCache.open(home / "cache"), short(), home / "run")
    return PhotoRun(photos, home / "cache", weights, home / "run")


def write_photos(folder: Path) -> None:
    random = np.random.default_rng(0)
    for color, value in COLORS.items():
        (folder / color).mkdir(parents=True)
        for number in range(15):
            path = folder / color / (HOSTILE if (color, number) == ("red", 3) else f"{number}.jpg")
            path.write_bytes(photo(value, random))
    (folder / "blue/7.jpg").write_text("not an image")


def photo(color: tuple[int, int, int], random: np.random.Generator) -> bytes:
    """A JPEG of `color` with noise, wider than high."""
    pixels = np.asarray(color) + random.integers(-20, 20, (120, 200, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()
