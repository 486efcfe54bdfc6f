"""Two nodes of a Ray cluster on this machine against one: time, and bytes, also when one of them is killed.

    python benchmarks/ray_nodes.py FOLDER [IMAGES] [PAIRS]

Makes IMAGES JPEGs and a small random DINOv2 in FOLDER, and embeds them by one process without Ray, and PAIRS times in
turn by one node of one core and by two. Prints seconds of each, their ratio, and whether all caches are the same to the
byte; then once more by two nodes of which one is killed after a quarter of the shards.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ray.cluster_utils import Cluster
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

TEMI = Path(sys.executable).with_name("temi")
NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
SHARD_ROWS = 100


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 4}
    Dinov2Model(Dinov2Config(image_size=112, patch_size=14, **sizes)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 128}, crop_size={"height": 112, "width": 112}).save_pretrained(folder)


def make_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(len(list(folder.iterdir())), count):
        pixels = random.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(folder / f"{number}.jpg", quality=90)


@contextmanager
def nodes(count: int) -> Iterator[Any]:
    cluster = Cluster()
    try:
        for _ in range(count):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()


def start(home: Path, out: Path, *more: str) -> "subprocess.Popen[bytes]":
    settings = [f"backbone={home / 'model'}", "views=1", "engine=torch", "device=cpu", f"shard_rows={SHARD_ROWS}"]
    options = [word for setting in settings for word in ("--set", f"embed.{setting}")]
    command = [TEMI, "embed", home / "images", "--out", out, *options, *more]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)


def embed(home: Path, out: Path, count: int) -> float:
    """Seconds of one command on `count` nodes that were there before, loading and listing included."""
    with nodes(count) as cluster:
        began = time.perf_counter()
        assert start(home, out, "--on", f"ray:{cluster.address}").wait() == 0
        return time.perf_counter() - began


def embed_with_a_kill(home: Path, out: Path, images: int) -> None:
    with nodes(2) as cluster:
        process = start(home, out, "--on", f"ray:{cluster.address}")
        while len(list(out.glob("shard-*.json"))) < images // SHARD_ROWS // 4:
            assert process.poll() is None
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        print(f"killed a node at {len(list(out.glob('shard-*.json')))} of {-(-images // SHARD_ROWS)} shards")
        assert process.wait() == 0


def same(one: Path, other: Path) -> str:
    """Whether all files are equal but those that hold times and places."""
    names = sorted(path.name for path in one.iterdir() if path.suffix != ".json" or path.name == "manifest.json")
    return "equal" if all((one / name).read_bytes() == (other / name).read_bytes() for name in names) else "DIFFERENT"


def main(home: Path, images: int, pairs: int) -> None:
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")
    make_model(home / "model")
    make_images(home / "images", images)
    assert start(home, home / "alone").wait() == 0
    ratios = []
    for pair in range(pairs):
        seconds = {count: embed(home, home / f"{count} nodes {pair}", count) for count in ((1, 2), (2, 1))[pair % 2]}
        bytes_of = {count: same(home / "alone", home / f"{count} nodes {pair}") for count in (1, 2)}
        print(f"one node {seconds[1]:.1f} s ({bytes_of[1]}), two {seconds[2]:.1f} s ({bytes_of[2]})", flush=True)
        ratios.append(seconds[1] / seconds[2])
    embed_with_a_kill(home, home / "killed", images)
    print(f"two nodes, one killed: {same(home / 'alone', home / 'killed')}")
    print(
        f"{images:,} images, {os.cpu_count()} cores hold both nodes: two are {statistics.median(ratios):.2f}x as fast"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=int, nargs="?", default=4000)
    parser.add_argument("pairs", type=int, nargs="?", default=3)
    asked = parser.parse_args()
    main(asked.folder, asked.images, asked.pairs)
