"""A run on real image files, made once for all tests of what a person does with a result."""

from collections.abc import Iterator

import pytest
import torch
from bucketing import Weather, serve_bucket
from photos import PhotoRun, short, write_photos
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from temi.cache import EmbeddingCache
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.runs.train import train_heads


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


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Weather]:
    """An S3 server with the bucket ``photos``, and the weather over it."""
    with pytest.MonkeyPatch.context() as patch, serve_bucket(patch) as weather:
        yield weather
