"""`temi embed` as a user runs it: a digest of the content, and several processes by torchrun, one of them killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from temi.cache import EmbeddingCache, Manifest

TEMI = Path(sys.executable).with_name("temi")

# Rank 1 dies by SIGKILL when it is about to write its second shard, where DIE is set.
KILLABLE = """
import os, signal, sys
from temi.cache import ShardWriter
from temi.cli import app

write, written = ShardWriter.write, []

def counted(*arguments, **options):
    if os.environ.get("DIE") and os.environ["RANK"] == "1" and written:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments, **options)
    written.append(1)

ShardWriter.write = counted
app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **small)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for row in range(43):
        Image.fromarray(random.integers(0, 256, (30, 30 + row, 3), np.uint8)).save(folder / f"{row}.bmp")
    (folder / "7.bmp").write_bytes(b"broken")
    return folder


def embed(photos: Path, out: Path, model: Path, *more: str, launcher: tuple[object, ...] = (TEMI,), **environment: str):
    settings = [f"embed.backbone={model}", "embed.views=1", "embed.shard_rows=4", "embed.workers=0", "embed.device=cpu"]
    options = [word for setting in settings for word in ("--set", setting)]
    command = [*launcher, "embed", photos, "--out", out, *options, *more]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=1800, env=os.environ | environment
    )


def brighten(path: Path) -> None:
    """Change the pixels of a .bmp and neither its name nor its size."""
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes(100))


def forget(cache: Path, shard: str) -> None:
    """Make the cache unfinished, as if it had been interrupted."""
    (cache / f"{shard}.json").unlink()
    (cache / "failures.csv").unlink()


@pytest.mark.long
def test_a_content_digest_notices_an_image_that_changed_in_place(photos: Path, model: Path, tmp_path: Path) -> None:
    for name, options in {"content": ("--digest", "content"), "names": ()}.items():
        assert embed(photos, tmp_path / name, model, *options).returncode == 0
        forget(tmp_path / name, "shard-00002")
    brighten(photos / "30.bmp")
    grown = embed(photos, tmp_path / "content", model, "--digest", "content")
    assert "1 new, 1 changed since it was made" in grown.stderr
    cache = EmbeddingCache.open(tmp_path / "content")
    assert (cache.keys[-1], cache.gone) == ("30.bmp", {30: "changed since; a later row shows it"})
    assert embed(photos, tmp_path / "names", model).returncode == 0  # names and sizes are what they were
    recorded = Manifest.read(tmp_path / "content", generation=0).fingerprint.images
    assert recorded.partition("+content:")[0] == Manifest.read(tmp_path / "names").fingerprint.images


@pytest.mark.long
def test_torchrun_fills_a_cache_with_three_processes_and_resumes_after_a_kill(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    script = tmp_path / "killable.py"
    script.write_text(KILLABLE)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", script)
    environment = {"OMP_NUM_THREADS": "1"}
    assert embed(photos, tmp_path / "one", model).returncode == 0
    killed = embed(photos, tmp_path / "three", model, launcher=torchrun, DIE="1", **environment)
    assert killed.returncode != 0
    assert (tmp_path / "three/shard-00001.json").exists()
    assert not (tmp_path / "three/shard-00004.json").exists()
    rerun = embed(photos, tmp_path / "three", model, launcher=torchrun, **environment)
    assert rerun.returncode == 0, rerun.stderr
    names = sorted(path.name for path in (tmp_path / "one").iterdir() if path.suffix != ".json")
    assert names == ["failures.csv", "listing-00000.parquet", *(f"shard-{index:05}.h5" for index in range(11))]
    for name in names:
        assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert EmbeddingCache.open(tmp_path / "three").verify() == []
    assert embed(photos, tmp_path / "three", model, "--overwrite", RANK="0", WORLD_SIZE="3").returncode == 2
