"""Several processes fill one cache; one is killed; the cache ends up as a single process writes it."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from cache import EmbeddingCache

SCRIPT = """
import os, signal, sys
from pathlib import Path
from cache import ShardWriter
from pipeline.config import EmbedConfig
from pipeline.embed import embed

photos, model, out, shard, die_after = sys.argv[1:]
write, written = ShardWriter.write, []

def counted(*arguments, **options):
    if len(written) == int(die_after):
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments, **options)
    written.append(1)

ShardWriter.write = counted
index, count = map(int, shard.split("/"))
config = EmbedConfig(backbone=model, views=1, shard_rows=5, batch_size=3, workers=1, device="cpu")
cache = embed(photos, Path(out), config, shard=(index, count))
print("finished" if cache else "owed")
"""


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for row in range(43):
        Image.fromarray(random.integers(0, 256, (30, 30 + row, 3), np.uint8)).save(folder / f"{row}.png")
    (folder / "7.png").write_bytes(b"broken")
    return folder


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **small)).save_pretrained(tmp_path / "model")
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**sizes).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_three_processes_one_killed_equal_a_single_one(tmp_path, photos, model):
    def start(out, shard, die_after=-1):
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), photos, model, tmp_path / out, shard, die_after]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    processes = [start("three", f"{index}/3", 1 if index == 1 else -1) for index in range(3)]
    single = start("one", "0/1")
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, -9, 0], said
    assert [out.strip() for out, _ in said] == ["owed", "", "owed"]
    assert not (tmp_path / "three/shard-00004.json").exists()
    rerun = start("three", "1/3")  # at once: what the dead process had claimed is free again
    out, err = rerun.communicate(timeout=300)
    assert out.strip() == "finished", err
    assert single.communicate(timeout=300)[0].strip() == "finished"
    names = sorted(path.name for path in (tmp_path / "one").iterdir() if path.suffix != ".json")
    assert names == ["failures.csv", *(f"shard-{index:05}.h5" for index in range(9))]
    for name in names:
        assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert EmbeddingCache.open(tmp_path / "three").digest == EmbeddingCache.open(tmp_path / "one").digest
    assert EmbeddingCache.open(tmp_path / "three").verify() == []
