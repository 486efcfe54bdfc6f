"""Views added to a cache: its bytes are as if it had been made with all of them, whenever a process is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import interrupted
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from temi.cache import CacheError, EmbeddingCache
from temi.cache.more_views import ALL, MORE
from temi.cache.verify import verify
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode import shards as module
from temi.pipeline.encode.embed import embed
from temi.pipeline.encode.forward import embed_rows
from temi.pipeline.errors import UserError

# Dies by SIGKILL when it has renamed so many files.
KILLED = """
import os, signal, sys
from temi.cli import app

left, rename = int(os.environ["RENAMES"]), os.replace

def replace(*paths):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)

os.replace = replace
app()
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EmbedConfig:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    sizes = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return EmbedConfig(backbone=str(folder), views=2, shard_rows=8, batch_size=3, workers=0, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 photos; row 4 cannot be read."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for row in range(20):
        Image.fromarray(random.integers(0, 256, (40, 30 + row, 3), np.uint8)).save(folder / f"{row:02d}.png")
    (folder / "04.png").write_text("not an image")
    return folder


def with_views(config: EmbedConfig, count: int) -> EmbedConfig:
    return config.model_copy(update={"views": count})


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}


@pytest.fixture(scope="module")
def whole(photos: Path, config: EmbedConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of a cache that was made with four views."""
    folder = tmp_path_factory.mktemp("whole")
    embed(str(photos), folder, with_views(config, 4))
    return shards(folder)


@pytest.mark.parametrize("views", [0, 2])
def test_a_cache_with_views_added_has_the_bytes_of_one_made_with_them(
    photos: Path, config: EmbedConfig, whole: dict[str, bytes], tmp_path: Path, views: int
) -> None:
    before = embed(str(photos), tmp_path, with_views(config, views))
    assert before is not None
    own, seen = before.embedding(), before.view_embedding()
    cache = embed(str(photos), tmp_path, with_views(config, 4))
    assert cache is not None
    assert shards(tmp_path) == whole
    np.testing.assert_array_equal(cache.embedding(), own)
    np.testing.assert_array_equal(cache.view_embedding()[:, :views], seen)
    assert verify(tmp_path) == []
    assert cache.failures.keys() == {4}
    assert [before.views for before in cache.manifest.viewed] == [views]
    again = EmbeddingCache.open_as(tmp_path, before.digest)  # a run that was trained before finds its cache
    assert again is not None
    assert again.digest == cache.digest
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_interrupted_addition_leaves_the_cache_as_it_is_and_goes_on(
    photos: Path, config: EmbedConfig, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(str(photos), tmp_path, config)
    there = shards(tmp_path)

    monkeypatch.setattr(module, "embed_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(str(photos), tmp_path, with_views(config, 4))
    monkeypatch.undo()
    assert shards(tmp_path) == there
    assert verify(tmp_path) == []
    assert EmbeddingCache.open(tmp_path).views == 2
    assert list(shards(tmp_path / MORE)) == ["shard-00000.h5"]
    with pytest.raises(CacheError, match=r"on its way from 2 to 4 views; finish that with embed\.views=4"):
        embed(str(photos), tmp_path, with_views(config, 3))
    embed(str(photos), tmp_path, config)  # what is there is whole
    embed(str(photos), tmp_path, with_views(config, 4))
    assert shards(tmp_path) == whole


def test_fewer_views_and_an_image_that_is_gone_are_refused(
    photos: Path, config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(str(photos), tmp_path / "cache", config)
    with pytest.raises(CacheError, match="views: here 2, asked 1"):
        embed(str(photos), tmp_path / "cache", with_views(config, 1))

    def unreadable(*arguments, **options):
        for batch in embed_rows(*arguments, **options):
            batch.failures.update({9: "gone"} if 9 in batch.rows else {})
            yield batch

    monkeypatch.setattr(module, "embed_rows", unreadable)
    with pytest.raises(UserError, match=r"09.png \(row 9\) could be read when .* was made and cannot be now"):
        embed(str(photos), tmp_path / "cache", with_views(config, 3))
    assert EmbeddingCache.open(tmp_path / "cache").views == 2


def test_processes_add_views_to_shards_of_their_own(
    photos: Path, config: EmbedConfig, whole: dict[str, bytes], tmp_path: Path
) -> None:
    embed(str(photos), tmp_path, config)
    assert embed(str(photos), tmp_path, with_views(config, 4), shard=(1, 2)) is None
    cache = embed(str(photos), tmp_path, with_views(config, 4), shard=(0, 2))
    assert cache is not None
    assert shards(tmp_path) == whole


@pytest.mark.long
def test_a_killed_process_at_any_rename_loses_nothing(
    photos: Path, config: EmbedConfig, whole: dict[str, bytes], tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    settings = [f"--set=embed.{name}={getattr(config, name)}" for name in ("backbone", "shard_rows", "batch_size")]
    command = [sys.executable, str(script), "embed", str(photos), *settings, "--set=embed.workers=0"]
    cache = tmp_path / "cache"
    embed(str(photos), cache, config)
    there, seen, renames = shards(cache), set(), "5"
    while True:
        environment = {**os.environ, "RENAMES": renames}
        more = [*command, "--out", str(cache), "--set=embed.views=4", "--set=embed.device=cpu"]
        ended = subprocess.run(more, env=environment, capture_output=True, text=True)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        seen |= {name for name in (MORE, ALL) if (cache / name).exists()}
        if (cache / MORE).exists():
            assert shards(cache) == there
            assert EmbeddingCache.open(cache).views == 2
        if (cache / ALL).exists():
            with pytest.raises(CacheError, match="rerun the command that made it, such as `temi embed`, to finish it"):
                EmbeddingCache.open(cache)
    assert seen == {MORE, ALL}
    assert shards(cache) == whole
    assert verify(cache) == []
