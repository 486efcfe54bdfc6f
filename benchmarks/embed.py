"""How close `temi embed` comes to the bare forward pass, and how far from a plain loop.

Every round times, one after the other in one process and with the same threads:

- bare: the model alone on tensors that are already there, as many batches at once as its engine takes
- embed, V = 0 and V = 2: a folder of JPEG files to a finished cache (loading the model is left out on all sides)
- embed by torch: V = 0 with embed.engine=torch, where the other arms run on another engine
- loop: AutoImageProcessor + AutoModel + DataLoader, as model cards show it

Every arm makes the same number of forward passes: a third of the images with two views each. Shares are of one round,
so that other work on the machine hits both sides; the median over rounds is printed. CPU
seconds, children included, are printed beside wall seconds: they hardly depend on what else the machine is doing.

    python benchmarks/embed.py PHOTOS --images 64 --rounds 3 [--model FOLDER] [--precision bf16] [--engine torch]
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModel, BitImageProcessor, Dinov2Config, Dinov2Model

from temi.cache import ShardWriter
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbones import DTYPES, Backbone, load_backbone
from temi.pipeline.encode.embed import Encoding, plan, view_policy
from temi.pipeline.encode.forward import batch_size, cut
from temi.pipeline.encode.shards import make_shards, show
from temi.pipeline.encode.workers import Decoder
from temi.pipeline.images import decode
from temi.pipeline.images.folder import FolderImages

VIEWS = (0, 2)


class FirstImages(FolderImages):
    """`count` images spread over a folder."""

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__(folder, max_pixels=10**9)
        rows = np.linspace(0, len(self.keys) - 1, min(count, len(self.keys))).astype(int)
        self.keys = [self.keys[row] for row in rows]
        self._names = [self._names[row] for row in rows]
        self.labels, self.splits = self.labels[rows], {}


def random_dinov2(folder: Path) -> Path:
    """DINOv2-base at full size with random weights: speed does not depend on their values."""
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=518)).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    BitImageProcessor(**sizes, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]).save_pretrained(
        folder
    )
    return folder


def bare(backbone: Backbone, count: int, size: int) -> None:
    pixels = torch.rand(size, 3, *backbone.preprocessing.crop, device=backbone.device)
    pieces = [pixels[: len(rows)] for rows in cut(0, count, size)]
    if backbone.lanes > 1:
        with ThreadPoolExecutor(backbone.lanes) as lanes:
            list(lanes.map(backbone, pieces))
    else:
        [backbone(piece) for piece in pieces][-1].cpu()


def embed_folder(backbone: Backbone, images: FolderImages, config: EmbedConfig) -> None:
    policy = view_policy(config)
    manifest = plan(images, Encoding.of(backbone, policy), config, images.digest)
    with tempfile.TemporaryDirectory() as out, ShardWriter.open(Path(out), manifest) as writer:
        steps = make_shards(writer, writer.pending(), images, backbone, policy, config)
        show(steps, manifest.rows, images.keys)
        assert writer.finish() is not None


class PlainLoop:
    """What a model card suggests: a DataLoader of Pillow images, the processor on each batch, the model in a loop."""

    def __init__(self, model: str, config: EmbedConfig, device: torch.device, size: int, workers: int) -> None:
        self.processor = AutoImageProcessor.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model, dtype=torch.float32).eval().to(device)
        self.dtype, self.device, self.size, self.workers = DTYPES[config.precision], device, size, workers

    def __call__(self, images: FolderImages) -> None:
        files = [images.folder / key for key in images.keys]
        loader = DataLoader(files, self.size, num_workers=self.workers, collate_fn=self._collate)
        found = []
        for batch in loader:
            enabled = self.dtype != torch.float32
            with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=enabled):
                found.append(self.model(pixel_values=batch.to(self.device)).last_hidden_state[:, 0].float().cpu())
        assert len(torch.cat(found)) == len(files)

    def _collate(self, files: list[Path]) -> torch.Tensor:
        images = [Image.open(file).convert("RGB") for file in files]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """(wall, CPU) seconds; CPU includes child processes that ended meanwhile."""
    before, start = os.times(), time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def rounds(arms: dict[str, Callable[[], None]], count: int) -> Iterator[dict[str, tuple[float, float]]]:
    """Time every arm once per round; every other round goes backwards."""
    for number in range(count):
        names = list(arms) if number % 2 == 0 else list(reversed(arms))
        yield {name: timed(arms[name]) for name in names}


def share(found: list[dict[str, tuple[float, float]]], arm: str, other: str, clock: int) -> list[float]:
    """Speed of `arm` relative to `other`, round by round."""
    return [one[other][clock] / one[arm][clock] for one in found]


def describe(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def hardware() -> str:
    name = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}{gpu}"


def decode_rates(backbone: Backbone, images: FolderImages, config: EmbedConfig, size: int) -> dict[str, float]:
    """Images per second that one core decodes, resizes and crops, by each decoder of JPEGs; medians over interleaved
    rounds."""
    threads, installed = torch.get_num_threads(), decode.simplejpeg
    torch.set_num_threads(1)
    decoders = {"Pillow": None} | ({"simplejpeg": installed} if installed else {})
    seconds: dict[str, list[float]] = {}
    for _ in range(5):
        for views in VIEWS:
            policy = view_policy(config.model_copy(update={"views": views}))
            decoder = Decoder(images, backbone.preprocessing, cut(0, len(images.keys), size), policy)
            for name, decode.simplejpeg in decoders.items():
                start = time.process_time()
                for index in range(len(decoder)):
                    decoder[index]
                seconds.setdefault(f"{name}, V={views}", []).append(time.process_time() - start)
    torch.set_num_threads(threads)
    decode.simplejpeg = installed
    return {name: len(images.keys) / statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of images")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="folder, hub id or efficientnet-lite0; default: DINOv2-base of random weights")
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--engine", default="auto", choices=["auto", "torch", "openvino"])
    parser.add_argument("--compile", action="store_true", help="the forward of every arm but the loop by torch.compile")
    parser.add_argument("--workers", type=int, help="decoding processes of all arms; default: what embed chooses")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(options, options.model or str(random_dinov2(Path(scratch))))


def run(options: argparse.Namespace, model: str) -> None:
    workers = "auto" if options.workers is None else options.workers
    chosen = {"precision": options.precision, "engine": options.engine, "compile": options.compile}
    config = EmbedConfig(backbone=model, workers=workers, **chosen)
    backbone, images = load_backbone(config), FirstImages(options.photos, options.images)
    count, size = len(images.keys), batch_size(config, backbone.device)
    arms: dict[str, Callable[[], None]] = {"bare": lambda: bare(backbone, count, size)}
    for views in VIEWS:
        settings = config.model_copy(update={"views": views})
        part = FirstImages(options.photos, count // (1 + views))
        arms[f"embed V={views}"] = lambda settings=settings, part=part: embed_folder(backbone, part, settings)
    if "openvino" in backbone.arithmetic:
        slow = load_backbone(config.model_copy(update={"engine": "torch"}))
        once = config.model_copy(update={"views": 0, "engine": "torch"})
        arms["embed by torch"] = lambda: embed_folder(slow, images, once)
    if model != "efficientnet-lite0":
        loop = PlainLoop(model, config, backbone.device, size, options.workers or 1)
        arms["loop"] = lambda: loop(images)
    bare(backbone, size, size)  # warm up
    found = list(rounds(arms, options.rounds))
    report(options, backbone, images, config, size, found)


def report(
    options: argparse.Namespace,
    backbone: Backbone,
    images: FolderImages,
    config: EmbedConfig,
    size: int,
    found: list[dict[str, tuple[float, float]]],
) -> None:
    count = len(images.keys)
    result = {
        "hardware": hardware(),
        "model": options.model or "DINOv2-base, random weights",
        "arithmetic": backbone.arithmetic,
        "images": count,
        "batch": size,
        "rounds": options.rounds,
        "load": os.getloadavg()[0],
        "bare forward, img/s (wall, per CPU second)": [
            round(count / statistics.median(one["bare"][clock] for one in found), 2) for clock in (0, 1)
        ],
        "decoded img/s per core": {
            key: round(value) for key, value in decode_rates(backbone, images, config, size).items()
        },
    }
    for clock, name in enumerate(("wall", "CPU")):
        for views in VIEWS:
            shares = share(found, f"embed V={views}", "bare", clock)
            result[f"embed V={views} as a share of bare, {name}"] = describe(shares)
        for other in ("loop", "embed by torch"):
            if other in found[0]:
                result[f"embed V=0 : {other}, {name}"] = describe(share(found, "embed V=0", other, clock))
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.out:
        options.out.write_text(json.dumps({**result, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
