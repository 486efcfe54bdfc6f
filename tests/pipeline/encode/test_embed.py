"""Stage one end to end: what is in the cache, resume, processes, failures and broken circumstances."""

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from photos import interrupted
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
from typer.testing import CliRunner

from temi.cache import CacheError, EmbeddingCache
from temi.cli import app
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode import embed as module
from temi.pipeline.encode import forward
from temi.pipeline.encode import shards as shards_module
from temi.pipeline.encode.backbones import Backbone, load_backbone
from temi.pipeline.encode.embed import embed, view_policy
from temi.pipeline.encode.forward import PARTS, Clock, cut, embed_rows
from temi.pipeline.encode.views import jitter
from temi.pipeline.errors import UserError
from temi.pipeline.images import open_source

LIMIT = 10**6
SETTINGS = {"views": 2, "shard_rows": 8, "batch_size": 3, "workers": 0, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    settings = Dinov2Config(
        image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2
    )
    Dinov2Model(settings).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**sizes).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """23 photos of two classes; row 4 is truncated and row 17 no image at all."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for row in range(23):
        path = folder / ("cat" if row < 10 else "dog") / f"{row}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30 + row, 60 - row, 3), np.uint8)).save(path)
    truncated = folder / "cat/4.jpg"
    truncated.write_bytes(truncated.read_bytes()[:300])
    (folder / "dog/17.jpg").write_text("not an image")
    return folder


@pytest.fixture
def config(model):
    return EmbedConfig(backbone=model, **SETTINGS)


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


def test_rows_are_the_models_own_output(photos, model, config, tmp_path):
    cache = embed(str(photos), tmp_path, config)
    images, backbone = open_source(str(photos), max_pixels=LIMIT), load_backbone(config)
    encoder = Dinov2Model.from_pretrained(model).eval()
    processor = BitImageProcessor.from_pretrained(model)
    for row in (0, 9, 22):
        inputs = processor(images=images.read(row), return_tensors="pt")
        with torch.inference_mode():
            expected = encoder(**inputs).last_hidden_state[0, 0].numpy()
        np.testing.assert_allclose(cache.embedding(row, row + 1)[0], expected, rtol=2e-3, atol=2e-3)
    assert cache.dim == backbone.dim == 16
    assert cache.keys == images.keys
    assert cache.labels.tolist() == images.labels.tolist()
    assert cache.classes == ("cat", "dog")
    assert cache.manifest.fingerprint.precision == backbone.arithmetic


def test_unreadable_images_keep_their_row_and_are_listed(photos, config, tmp_path):
    cache = embed(str(photos), tmp_path, config)
    assert np.flatnonzero(~cache.ok).tolist() == [4, 17]
    assert not cache.embedding(4, 5).any()
    assert not cache.view_embedding(17, 18).any()
    with (tmp_path / "failures.csv").open(newline="") as file:
        listed = {row["key"]: row["reason"] for row in csv.DictReader(file)}
    assert listed.keys() == {"cat/4.jpg", "dog/17.jpg"}
    assert "truncated" in listed["cat/4.jpg"]
    assert "not a JPEG" in listed["dog/17.jpg"]


def test_views_are_those_of_their_row(photos, config, tmp_path):
    config = config.model_copy(update={"turn": 0.75})
    cache = embed(str(photos), tmp_path, config)
    images, backbone, policy = open_source(str(photos), max_pixels=LIMIT), load_backbone(config), view_policy(config)
    for row, number in ((3, 0), (3, 1), (21, 1)):
        image = images.read(row)
        view = policy.draw(row, number)
        top, left, height, width = policy.box(view, *image.shape[-2:])
        turned = image[:, top : top + height, left : left + width].rot90(view.turns, (1, 2))
        crop = backbone.preprocessing.scale(turned, (28, 28))
        crop = crop.flip(-1) if view.flip else crop
        expected = backbone(jitter(crop[None].float() / 255, torch.tensor([view.jitter])))
        np.testing.assert_allclose(cache.view_embedding(row, row + 1)[0, number], expected[0], rtol=2e-3, atol=2e-3)
    assert not np.array_equal(cache.view_embedding(3, 4)[0, 0], cache.view_embedding(3, 4)[0, 1])


def test_batch_size_and_workers_do_not_change_the_numbers(photos, config, tmp_path):
    one = embed(str(photos), tmp_path / "1", config)
    other = embed(str(photos), tmp_path / "2", config.model_copy(update={"batch_size": 7, "workers": 1}))
    np.testing.assert_allclose(one.embedding(), other.embedding(), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(one.view_embedding(), other.view_embedding(), rtol=2e-3, atol=2e-3)


def test_an_interrupted_run_resumes_to_the_same_bytes(photos, config, tmp_path, monkeypatch):
    embed(str(photos), tmp_path / "whole", config)

    monkeypatch.setattr(shards_module, "embed_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(str(photos), tmp_path / "parts", config)
    assert list(shards(tmp_path / "parts")) == ["shard-00000.h5"]
    with pytest.raises(CacheError, match="temi embed"):
        EmbeddingCache.open(tmp_path / "parts")
    monkeypatch.undo()
    embed(str(photos), tmp_path / "parts", config)
    assert shards(tmp_path / "parts") == shards(tmp_path / "whole")


def test_each_process_makes_its_own_shards(photos, config, tmp_path):
    embed(str(photos), tmp_path / "one", config)
    assert embed(str(photos), tmp_path / "two", config, shard=(1, 2)) is None
    assert list(shards(tmp_path / "two")) == ["shard-00001.h5"]
    cache = embed(str(photos), tmp_path / "two", config, shard=(0, 2))
    assert cache.rows == 23
    assert shards(tmp_path / "two") == shards(tmp_path / "one")


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_one_sentence(photos, config, tmp_path, shard):
    with pytest.raises(UserError, match="does not exist; count from"):
        embed(str(photos), tmp_path, config, shard=shard)


# Every setting of stage one: another value, and the field of the fingerprint or the plan that it is refused by.
REFUSED = {
    "backbone": ("other", "revision: here"),
    "pooling": ("mean", "pooling: here"),
    "image_size": (42, "preprocessing.crop: here"),
    "views": (1, "views: here"),
    "crop_scale": ((0.5, 1.0), "view_policy.crop_scale: here"),
    "flip": (0.0, "view_policy.flip: here"),
    "turn": (0.5, "view_policy.turn: here"),
    "jitter": (0.1, "view_policy.jitter: here"),
    "seed": (1, "view_seed: here"),
    "precision": ("bf16", "precision: here"),
    "compile": (True, "precision: here"),
    "shard_rows": (9, "rows per shard: here 8, asked 9"),
    "digest": ("content", "images: here"),
}
# What changes no number; max_pixels decides which images are read, and failures.csv says which were not.
FREE = {"device": "auto", "batch_size": 8, "workers": 1, "max_pixels": 10**6}
HUB_ONLY = {"revision"}  # resolved to a commit, which is in the fingerprint
ENGINE = {"engine"}  # tests/pipeline/encode/test_openvino.py


def test_every_setting_is_tested_one_way_or_the_other():
    assert REFUSED.keys() | FREE.keys() | HUB_ONLY | ENGINE == EmbedConfig.model_fields.keys()


@pytest.fixture(scope="module")
def settled(photos, model, tmp_path_factory):
    """A cache, and a folder of other weights of the same shape."""
    folder = tmp_path_factory.mktemp("settled")
    embed(str(photos), folder / "cache", EmbedConfig(backbone=model, **SETTINGS))
    torch.manual_seed(1)
    Dinov2Model(Dinov2Config.from_pretrained(model)).save_pretrained(folder / "other")
    BitImageProcessor.from_pretrained(model).save_pretrained(folder / "other")
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_another_value_is_refused_by_name(photos, config, settled, name):
    value, named = REFUSED[name]
    value = str(settled / value) if name == "backbone" else value
    with pytest.raises(CacheError, match=re.escape(named)):
        embed(str(photos), settled / "cache", config.model_copy(update={name: value}))


@pytest.mark.parametrize("name", FREE)
def test_a_setting_of_speed_alone_may_change(photos, config, settled, name):
    assert embed(str(photos), settled / "cache", config.model_copy(update={name: FREE[name]})).rows == 23


def test_overwrite_starts_again_with_other_settings(photos, config, tmp_path):
    embed(str(photos), tmp_path, config)
    cache = embed(str(photos), tmp_path, config.model_copy(update={"pooling": "mean"}), overwrite=True)
    assert cache.manifest.fingerprint.pooling == "mean"


def test_without_views_their_settings_do_not_matter(photos, config, tmp_path):
    plain = config.model_copy(update={"views": 0})
    embed(str(photos), tmp_path, plain)
    cache = embed(str(photos), tmp_path, plain.model_copy(update={"seed": 5, "flip": 0.1}))
    assert cache.view_embedding().shape == (23, 0, 16)


def encoder(encode, **changes):
    """A backbone of 28 x 28 pixels around `encode`."""
    from temi.pipeline.encode.preprocessing import Preprocessing

    preprocessing = Preprocessing(28, (28, 28), "bilinear", 1 / 255, (0.0,) * 3, (1.0,) * 3)
    settings = {"name": "fake", "revision": "1", "pooling": "mean", "precision": "fp32", "dim": 3}
    return Backbone(**settings, preprocessing=preprocessing, device=torch.device("cpu"), encode=encode, **changes)


def mean_color(pixels):
    return pixels.mean(dim=(2, 3))


def test_running_out_of_memory_makes_passes_smaller(photos):
    passes = []

    def encode(pixels):
        passes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_color(pixels)

    images = open_source(str(photos), max_pixels=LIMIT)
    small = list(embed_rows(encoder(encode), images, cut(0, 16, 8)))
    whole = list(embed_rows(encoder(mean_color), images, cut(0, 16, 8)))
    assert passes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    for one, other in zip(small, whole, strict=True):
        assert torch.equal(one.embedding, other.embedding)


@pytest.mark.parametrize(("kind", "pinned"), [("cpu", False), ("cuda", True)])
def test_batches_for_a_gpu_are_pinned(photos, monkeypatch, kind, pinned):
    asked = []
    monkeypatch.setattr(forward, "decode_batches", lambda *_, pin, **__: asked.append(pin) or iter(()))
    images = open_source(str(photos), max_pixels=LIMIT)
    backbone = replace(encoder(mean_color), device=torch.device(kind))
    assert list(embed_rows(backbone, images, cut(0, 4, 4))) == []
    assert asked == [pinned]


def test_one_image_too_many_is_one_sentence(photos):
    def encode(pixels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="one image does not fit the memory of cpu"):
        list(embed_rows(encoder(encode), open_source(str(photos), max_pixels=LIMIT), cut(0, 4, 4)))


def test_another_error_is_not_taken_for_lack_of_memory(photos):
    def encode(pixels):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(embed_rows(encoder(encode), open_source(str(photos), max_pixels=LIMIT), cut(0, 4, 4)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_an_embedding_that_is_not_finite_names_its_image(photos, config, tmp_path, monkeypatch, value):
    calls = []

    def encode(pixels):
        calls.append(len(pixels))
        embedding = mean_color(pixels)
        if len(calls) == 2:
            embedding[1] = value
        return embedding

    monkeypatch.setattr(module, "load_backbone", lambda config: encoder(encode))
    plain = config.model_copy(update={"views": 0, "batch_size": 4})
    with pytest.raises(CacheError, match=r"cat/5.jpg \(row 5\).*precision"):
        embed(str(photos), tmp_path, plain)


def test_an_embedding_too_small_for_float16_is_refused_before_it_is_stored(photos, config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_backbone", lambda config: encoder(lambda pixels: 1e-7 * mean_color(pixels)))
    with pytest.raises(CacheError, match=r"loses .* of its norm in float16.*another backbone"):
        embed(str(photos), tmp_path, config)


def test_rows_can_be_embedded_without_a_cache(photos, config):
    images, backbone = open_source(str(photos), max_pixels=LIMIT), load_backbone(config)
    clock = Clock()
    batches = list(embed_rows(backbone, images, cut(2, 9, 3), clock=clock))
    assert [batch.rows for batch in batches] == [range(2, 5), range(5, 8), range(8, 9)]
    assert [tuple(batch.embedding.shape) for batch in batches] == [(3, 16), (3, 16), (1, 16)]
    assert [tuple(batch.views.shape) for batch in batches] == [(3, 0, 16), (3, 0, 16), (1, 0, 16)]
    assert [batch.failures.keys() for batch in batches] == [{4}, set(), set()]
    assert clock.seconds["forward"] > 0
    assert clock.seconds["decode wait"] > 0


def test_a_mistake_in_the_source_is_told_before_the_encoder_is_looked_for(config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_backbone", lambda config: pytest.fail("loaded"))
    with pytest.raises(UserError, match="nonexistent does not exist"):
        embed(str(tmp_path / "nonexistent"), tmp_path / "cache", config)
    monkeypatch.setattr("temi.pipeline.network.hub_answers", lambda: False)
    missing, out = str(tmp_path / "nonexistent"), str(tmp_path / "cache")
    done = CliRunner().invoke(app, ["embed", missing, "--out", out, "--set", "embed.backbone=nobody/nothing"])
    assert (done.exit_code, f"temi: {missing} does not exist" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_progress_counts_failures_and_says_where_time_went(photos, config, tmp_path, capsys):
    embed(str(photos), tmp_path, config)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"embed: 23/23 img, \S+ img/s, in 0:0\d, shard 3/3, 2 unreadable", lines[-2])
    assert re.fullmatch(r"embed: .* s: decode wait .*%\), preprocess .*, forward .*, write .*\)", lines[-1])


def test_every_shard_knows_its_seconds(photos, config, tmp_path):
    embed(str(photos), tmp_path, config)
    for path in sorted(tmp_path.glob("shard-*.json")):
        text = path.read_text()
        assert all(part in text for part in PARTS), path


def test_pixels_beyond_the_limit_are_unreadable(photos, config, tmp_path):
    cache = embed(str(photos), tmp_path, config.model_copy(update={"max_pixels": 1900}))
    assert 2 < (~cache.ok).sum() < 23
    assert "embed.max_pixels" in (tmp_path / "failures.csv").read_text()


def test_an_elongated_strip_is_unreadable_not_a_bomb(tmp_path, config):
    (tmp_path / "images").mkdir()
    for name, size in (("strip.png", (200_000, 1)), ("fine.png", (40, 40))):
        data = io.BytesIO()
        Image.new("RGB", size, "red").save(data, "PNG")
        (tmp_path / "images" / name).write_bytes(data.getvalue())
    cache = embed(str(tmp_path / "images"), tmp_path / "cache", config)
    assert cache.ok.tolist() == [True, False]
    assert "too long a strip" in (tmp_path / "cache/failures.csv").read_text()


@pytest.mark.long
def test_dinov2_base_at_full_size(photos, tmp_path):
    torch.manual_seed(0)
    encoder = Dinov2Model(Dinov2Config(image_size=518)).eval()
    encoder.save_pretrained(tmp_path / "model")
    sizes = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    processor = BitImageProcessor(**sizes, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    processor.save_pretrained(tmp_path / "model")
    config = EmbedConfig(backbone=str(tmp_path / "model"), views=0, batch_size=4, device="cpu")
    (tmp_path / "photos").mkdir()
    for row in range(6):
        (tmp_path / "photos" / f"{row}.jpg").write_bytes((photos / f"cat/{5 + row % 5}.jpg").read_bytes())
    cache = embed(str(tmp_path / "photos"), tmp_path / "cache", config)
    images = open_source(str(tmp_path / "photos"), max_pixels=LIMIT)
    inputs = processor(images=[images.read(row) for row in range(6)], return_tensors="pt")
    with torch.inference_mode():
        expected = encoder(**inputs).last_hidden_state[:, 0].numpy()
    assert cache.dim == 768
    np.testing.assert_allclose(cache.embedding(), expected, rtol=1e-3, atol=1e-3)
