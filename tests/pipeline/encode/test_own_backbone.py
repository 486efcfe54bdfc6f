"""A backbone in a user's own file: the one of docs/adding-a-backbone.md, run from a temporary file."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photos import short

from temi.cache import CacheError, EmbeddingCache
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode import backbones
from temi.pipeline.encode.backbones import load_backbone, register_backbone
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError
from temi.pipeline.plugins import load_plugin
from temi.pipeline.runs.train import train_heads

TEMI = Path(sys.executable).with_name("temi")
PAGE = Path(__file__).parents[3] / "docs/adding-a-backbone.md"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first Python block of the page, as a file; what it registers is forgotten afterwards."""
    monkeypatch.setattr(backbones, "_LOADERS", dict(backbones._LOADERS))
    path = tmp_path / "mine.py"
    path.write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
    return path


@pytest.mark.long
def test_the_command_line_runs_the_file_it_is_given(plugin: Path, tmp_path: Path) -> None:
    settings = ["embed.backbone=mean-color", "embed.views=0", "embed.workers=0", "embed.device=cpu"]
    sets = [part for setting in settings for part in ("--set", setting)]
    command = [TEMI, "embed", "digits", "--out", tmp_path / "cache", "--plugin", plugin, *sets]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr
    cache = EmbeddingCache.open(tmp_path / "cache")
    assert (cache.rows, cache.dim, cache.manifest.fingerprint.backbone) == (1797, 3, "mean-color")


@pytest.mark.parametrize("wrong", ["pixels.mean(dim=(2, 9))", "pixels.mean(dim=(2, 3)) / {}['scale']"])
@pytest.mark.parametrize("engine", ["auto", pytest.param("torch", marks=pytest.mark.long)])
def test_an_error_in_ones_own_encoder_says_where(plugin: Path, tmp_path: Path, wrong: str, engine: str) -> None:
    plugin.write_text(plugin.read_text().replace("pixels.mean(dim=(2, 3))", wrong))
    line = 1 + next(number for number, text in enumerate(plugin.read_text().split("\n")) if wrong in text)
    settings = ["embed.backbone=mean-color", "embed.views=0", "embed.workers=0", f"embed.engine={engine}"]
    sets = [part for setting in settings for part in ("--set", setting)]
    command = [TEMI, "embed", "digits", "--out", tmp_path / "cache", "--plugin", plugin, *sets]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 2
    assert f"temi: the plugin {plugin} failed at line {line}: " in run.stderr
    assert "Traceback" not in run.stderr


def test_a_changed_file_does_not_go_on_with_the_cache(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EmbedConfig(backbone="mean-color", views=0, workers=0, device="cpu", engine="torch")
    digest = load_plugin(plugin).digest
    cache = embed("digits", tmp_path / "cache", config)
    assert cache.manifest.fingerprint.revision.endswith(f"plugin sha256:{digest}")
    assert np.isfinite(cache.embedding()).all()
    del backbones._LOADERS["mean-color"]
    plugin.write_text(plugin.read_text() + "\n# changed\n")
    load_plugin(plugin)
    with pytest.raises(CacheError, match="revision"):
        embed("digits", tmp_path / "cache", config)


@pytest.mark.long
def test_predict_asks_for_the_plugin_of_the_run(plugin: Path, tmp_path: Path) -> None:
    config = EmbedConfig(backbone="mean-color", views=0, workers=0, device="cpu", engine="torch")
    load_plugin(plugin)
    cache = embed("digits", tmp_path / "cache", config)
    assert cache is not None
    train_heads(cache, short(), tmp_path / "run")
    del backbones._LOADERS["mean-color"]
    command = [TEMI, "predict", tmp_path / "run", "digits", "--out", tmp_path / "new.csv"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert refused.returncode == 2
    assert "with the backbone mean-color of a plugin" in refused.stderr
    named = subprocess.run([*command, "--plugin", plugin], capture_output=True, text=True, timeout=600)
    assert named.returncode == 0, named.stderr
    assert len((tmp_path / "new.csv").read_text().splitlines()) == 1 + 1797


def test_a_name_is_registered_once(plugin: Path) -> None:
    load_plugin(plugin)
    with pytest.raises(UserError, match="mean-color is already registered"):
        register_backbone("mean-color")(load_backbone)
    with pytest.raises(UserError, match="efficientnet-lite0 is already registered"):
        register_backbone("efficientnet-lite0")(load_backbone)
