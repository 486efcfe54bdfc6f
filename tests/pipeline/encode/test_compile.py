"""`embed.compile`: close to the eager numbers, named in the fingerprint, and one sentence without a compiler."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from temi.cache import CacheError
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode import backbones
from temi.pipeline.encode.backbones import compiled, load_backbone
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError


@pytest.fixture
def config(tmp_path: Path) -> EmbedConfig:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **small)).save_pretrained(tmp_path / "model")
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**sizes).save_pretrained(tmp_path / "model")
    return EmbedConfig(backbone=str(tmp_path / "model"), views=0, batch_size=8, device="cpu", engine="torch", workers=0)


@pytest.mark.long
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_compiled_backbone_is_close_to_the_plain_one(config: EmbedConfig) -> None:
    pixels = torch.rand(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    plain = load_backbone(config)
    fast = load_backbone(config.model_copy(update={"compile": True}))
    np.testing.assert_allclose(fast(pixels), plain(pixels), rtol=1e-4, atol=1e-5)
    assert (plain.arithmetic, fast.arithmetic) == ("fp32", "fp32, compiled")


def test_a_cache_is_not_continued_with_the_other(
    config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed("digits", tmp_path / "cache", config.model_copy(update={"shard_rows": 2048}))
    monkeypatch.setattr(backbones, "compiled", lambda encode: encode)
    with pytest.raises(CacheError, match='precision: here "fp32", asked "fp32, compiled"'):
        embed("digits", tmp_path / "cache", config.model_copy(update={"compile": True}))


def test_without_a_compiler_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler_missing(pixels: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("No working C++ compiler found"), None)

    monkeypatch.setattr(torch, "compile", lambda encode, **_: compiler_missing)
    with pytest.raises(UserError, match=r"cannot be compiled \(.*\); install g\+\+ .* or use embed.compile=false"):
        compiled(lambda pixels: pixels)(torch.zeros(1))
