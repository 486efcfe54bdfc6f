"""Search by picture finds what the encoder finds alike; search by words agrees with CLIP on the images themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from photos import COLORS, PhotoRun, photo, short
from PIL import Image
from tiny_clip import write_clip
from transformers import CLIPModel, CLIPProcessor

from temi.cache import EmbeddingCache
from temi.cache.convert.join import join_caches
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError
from temi.pipeline.images import UnreadableImage
from temi.pipeline.results.find import Finder
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.train import train_heads

TEXT = "a photo of red"


@pytest.fixture(scope="module")
def clip(photo_run: PhotoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``weights`` of a tiny CLIP, a run on its ``cache``, and one on it joined to another encoder's."""
    home = tmp_path_factory.mktemp("clip")
    write_clip(home / "weights")
    settings = EmbedConfig(backbone=str(home / "weights"), views=0, batch_size=8, workers=0, device="cpu")
    embed(str(photo_run.photos), home / "cache", settings)
    join_caches([photo_run.cache, home / "cache"], home / "both")
    train_heads(EmbeddingCache.open(home / "cache"), short(), home / "run")
    train_heads(EmbeddingCache.open(home / "both"), short(), home / "joined")
    return home


def test_a_picture_finds_itself_and_its_like(photo_run: PhotoRun) -> None:
    finder = Finder(FinishedRun(photo_run.run), str(photo_run.weights), "cpu")
    keys = finder.run.trained["key"]
    own = finder.like((photo_run.photos / "green/4.jpg").read_bytes())
    assert keys[own[0]] == "green/4.jpg"
    assert len(set(own)) == 44
    new = finder.like(photo(COLORS["blue"], np.random.default_rng(9)))
    assert sum(key.startswith("blue/") for key in keys[new[:8]]) >= 6
    with pytest.raises(UnreadableImage):
        finder.like(b"no picture")
    assert not finder.knows_words
    with pytest.raises(UserError, match="no part of its cache is CLIP's"):
        finder.described("red")


@pytest.mark.parametrize("name", ["run", "joined"])
def test_words_find_what_clip_finds(photo_run: PhotoRun, clip: Path, name: str) -> None:
    finder = Finder(FinishedRun(clip / name), str(clip / "weights"), "cpu")
    assert finder.knows_words
    found = finder.described(TEXT)
    keys = finder.run.trained["key"]
    model, processor = (
        CLIPModel.from_pretrained(clip / "weights").eval(),
        CLIPProcessor.from_pretrained(clip / "weights"),
    )
    pictures = [Image.open(photo_run.photos / key).convert("RGB") for key in keys]
    given = processor(text=[TEXT], images=pictures, return_tensors="pt", padding=True)
    with torch.inference_mode():
        made = model(**given)
    expected = (made.image_embeds @ made.text_embeds[0]).numpy()
    assert np.ptp(expected) > 0.01  # or any order would do
    assert np.diff(expected[found]).max() < 0.1 * np.ptp(expected)  # to what float16 and another resizing leave
    assert np.corrcoef(np.argsort(found), np.argsort(np.argsort(-expected)))[0, 1] > 0.98
    picture = finder.like((photo_run.photos / "green/4.jpg").read_bytes())
    assert "green/4.jpg" in set(keys[picture[:3]])


def test_other_weights_and_no_words_are_refused(photo_run: PhotoRun, clip: Path, tmp_path: Path) -> None:
    run = FinishedRun(clip / "run")
    with pytest.raises(UserError, match="give that folder by --backbone FOLDER"):
        Finder(run).described("red")
    with pytest.raises(UserError, match="holds other weights than those that made the cache"):
        Finder(run, str(photo_run.weights)).described("red")
    for text in ("", " ", "x" * 301):
        with pytest.raises(UserError, match="describe an image in 1 to 300 characters"):
            Finder(run).described(text)
