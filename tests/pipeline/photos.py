"""Photos of three colors, and a run on them."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from temi.pipeline.config import Config, load_config
from temi.pipeline.encode.forward import EmbeddedBatch, embed_rows

COLORS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (20, 40, 210)}
HOSTILE = "<img src=x onerror=alert(1)> & 'quoted' \"twice\".jpg"


@dataclass(frozen=True)
class PhotoRun:
    """Folders of the images, their cache, the weights and the run."""

    photos: Path
    cache: Path
    weights: Path
    run: Path


def interrupted(*arguments: Any, **options: Any) -> Iterator[EmbeddedBatch]:
    """`embed_rows`, until Ctrl-C at its fifth batch: of shards of three batches in the middle of the second."""
    for count, batch in enumerate(embed_rows(*arguments, **options)):
        if count == 4:
            raise KeyboardInterrupt
        yield batch


def short(*overrides: str) -> Config:
    """Settings of a training that takes a second."""
    base = ["heads.clusters=3", "heads.count=4", "neighbors.k=5", "train.batch_size=32", "train.epochs=0"]
    more = ["train.min_steps=60", "train.log_every=10", "train.tensorboard=false", "start.kind=random"]
    return load_config(None, [*base, *more, *overrides])


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
