"""Through OpenVINO: close to torch, named in the fingerprint, converted once, and torch instead with a reason."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BitImageProcessor, ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model, ViTImageProcessor

from temi.cache import CacheError
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode import engines
from temi.pipeline.encode.backbone import Backbone
from temi.pipeline.encode.backbones import load_backbone
from temi.pipeline.encode.embed import embed
from temi.pipeline.encode.preprocessing import Preprocessing
from temi.pipeline.errors import UserError

ov = pytest.importorskip("openvino")
engine = pytest.importorskip("temi.pipeline.encode.openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dinov2")
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **small)).save_pretrained(path)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}).save_pretrained(path)
    return str(path)


@pytest.fixture
def config(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbedConfig:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    return EmbedConfig(backbone=folder, device="cpu", engine="openvino", views=0, batch_size=8, workers=0)


def noise(count: int, side: int = 56) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def by_torch(config: EmbedConfig) -> Backbone:
    return load_backbone(config.model_copy(update={"engine": "torch"}))


def around(encode) -> Backbone:
    """A backbone of 8 x 8 pixels around `encode`."""
    preprocessing = Preprocessing(8, (8, 8), "bilinear", 1 / 255, (0.0,) * 3, (1.0,) * 3)
    return Backbone("fake", "1", "mean", "fp32", 3, preprocessing, torch.device("cpu"), encode)


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_every_pooling_and_size_of_batch_gives_the_numbers_of_torch(config, pooling):
    config = config.model_copy(update={"pooling": pooling})
    fast, plain = load_backbone(config), by_torch(config)
    assert isinstance(fast, engine.OpenVinoBackbone)
    for count in (1, 5):
        np.testing.assert_allclose(fast(noise(count)), plain(noise(count)), rtol=1e-3, atol=1e-4)


def test_an_encoder_that_returns_a_map_is_converted_too(config, tmp_path):
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    ConvNextModel(ConvNextConfig(image_size=64, **sizes)).save_pretrained(tmp_path / "map")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "map")
    config = config.model_copy(update={"backbone": str(tmp_path / "map"), "pooling": "mean"})
    np.testing.assert_allclose(
        load_backbone(config)(noise(3, 64)), by_torch(config)(noise(3, 64)), rtol=1e-3, atol=1e-4
    )


@pytest.mark.long
def test_some_stored_values_differ_from_torchs_so_the_fingerprint_names_the_engine(config, tmp_path):
    fast, plain = load_backbone(config), by_torch(config)
    apart = (fast(noise(64)).half() != plain(noise(64)).half()).float().mean()
    assert 0 < apart < 0.2
    version = ov.__version__.partition("-")[0]
    assert (plain.arithmetic, fast.arithmetic) == ("fp32", f"fp32, openvino {version}")
    embed("digits", tmp_path / "cache", config.model_copy(update={"shard_rows": 2048}))
    with pytest.raises(CacheError, match=f'precision: here "fp32, openvino {version}", asked "fp32"'):
        embed("digits", tmp_path / "cache", config.model_copy(update={"engine": "torch"}))


def test_auto_goes_on_with_torch_where_torch_began(config, tmp_path):
    embed("digits", tmp_path / "cache", config.model_copy(update={"engine": "torch"}))
    cache = embed("digits", tmp_path / "cache", config.model_copy(update={"engine": "auto"}))
    assert cache.manifest.fingerprint.precision == "fp32"


@pytest.mark.long
def test_a_second_load_does_not_convert_and_a_damaged_conversion_is_made_again(config, tmp_path, monkeypatch):
    expected = load_backbone(config)(noise(2))
    kept = tmp_path / "kept/temi/openvino"
    (weights,) = kept.glob("*/model.bin")
    assert kept.stat().st_mode & 0o777 == 0o700
    converted, convert = [], engine._convert
    monkeypatch.setattr(engine, "_convert", lambda *arguments: converted.append(1) or convert(*arguments))
    assert torch.equal(load_backbone(config)(noise(2)), expected)
    assert not converted
    size = weights.stat().st_size
    weights.write_bytes(bytes(size))
    assert torch.equal(load_backbone(config)(noise(2)), expected)
    assert converted == [1]
    weights.write_bytes(b"")
    assert torch.equal(load_backbone(config)(noise(2)), expected)
    assert converted == [1, 1]


@pytest.mark.long
def test_where_nothing_can_be_kept_it_converts_each_time(config, tmp_path, monkeypatch):
    (tmp_path / "kept").write_text("a file, not a folder")
    assert load_backbone(config)(noise(2)).shape == (2, 64)


def test_only_so_many_conversions_are_kept(tmp_path, monkeypatch):
    from temi.pipeline.encode.conversions import KEPT, Conversions, Identity

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = [Identity(str(number), "", "cls", (), ("1", "2")) for number in range(KEPT + 2)]
    for identity in made:
        Conversions().keep(identity, lambda path: path.write_text("graph"))
    found = [Conversions().find(identity) is not None for identity in made]
    assert sum(found) == KEPT
    assert found[-1]


@pytest.mark.parametrize(
    ("encode", "reason"),
    [
        (lambda pixels: (pixels if pixels.sum() > 1e9 else pixels * float(pixels.mean())).mean(dim=(2, 3)), "differs"),
        (lambda pixels: torch.from_numpy(pixels.numpy().mean(axis=(2, 3))), "differs"),
        (lambda pixels: torch.linalg.eigvals(pixels).real.mean(-1), "conversion failed"),
    ],
    ids=["a number frozen by tracing", "outside of torch", "no such operation"],
)
def test_what_cannot_be_converted_is_computed_by_torch_and_a_line_says_why(encode, reason, capsys):
    backbone = around(encode)
    assert engines.with_engine(backbone, "auto") is backbone
    assert reason in capsys.readouterr().err
    with pytest.raises(UserError, match=f"engine=openvino cannot run fake: .*{reason}.*; use embed.engine=torch"):
        engines.with_engine(backbone, "openvino")


def test_without_openvino_torch_computes_and_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    backbone = around(lambda pixels: pixels.mean(dim=(2, 3)))
    assert engines.with_engine(backbone, "auto") is backbone
    line = capsys.readouterr().err
    assert line.startswith("embed: computed by torch, not OpenVINO: openvino is not installed; pip install 'temi-")
    with pytest.raises(UserError, match="is not installed"):
        engines.with_engine(backbone, "openvino")


def test_auto_says_nothing_where_torch_was_asked_for_or_the_processor_is_another(monkeypatch, capsys):
    plain = around(lambda pixels: pixels.mean(dim=(2, 3)))
    assert engines.with_engine(plain, "torch") is plain
    monkeypatch.setattr(engines.platform, "machine", lambda: "arm64")
    assert engines.with_engine(plain, "auto") is plain
    assert capsys.readouterr().err == ""


def test_bf16_is_torchs_where_the_processor_has_none(config, capsys):
    if "BF16" in engine._core(ov).get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has bf16")
    backbone = load_backbone(config.model_copy(update={"engine": "auto", "precision": "bf16"}))
    assert backbone.arithmetic == "bf16"
    assert "no bf16 instructions" in capsys.readouterr().err
    assert load_backbone(config.model_copy(update={"precision": "auto"})).arithmetic.startswith("fp32, openvino")


@pytest.mark.long
def test_a_signal_after_two_backbones_were_let_go_does_not_kill_the_process(folder, tmp_path):
    code = f"""
import gc, os, signal
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbones import load_backbone
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
config = EmbedConfig(backbone={folder!r}, device="cpu", engine="openvino")
first, second = load_backbone(config), load_backbone(config.model_copy(update={{"pooling": "mean"}}))
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, env=environment, check=False
    )
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr


def test_nothing_is_reported_to_openvinos_maker():
    code = (
        "import sys\nfrom temi.pipeline.encode.openvino import _import\n_import()\n"
        "print(sys.modules['openvino_telemetry'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=True)
    assert run.stdout == "None\n"
