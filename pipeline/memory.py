"""How much memory a pass of stage two takes, said before it starts; too much is one sentence, not a killed process."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cache import EmbeddingCache
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.heads import init_heads
from pipeline.scaling import BLOCK_ROWS, COMPONENTS, POWER
from pipeline.train import heads_per_block

HALF, FLOAT, INDEX = 2, 4, 8  # bytes
HEAD_COPIES = 7  # student, teacher, two moments, gradient, best checkpoint, and the bytes of the one being written
READING_COPIES = 2  # of the float16 embeddings: those of the cache, and those of the rows to train on
SCALING_COPIES = 4  # of the block that is scaled
SEARCH_COPIES = 3  # of the rows that neighbors are searched among: as scaled, at unit norm, in the index
WORK_COPIES = {"linear": 4, "published": 10, "mlp-bn": 12}  # of a block's widest activation; with a graph, far more
GIGABYTE = 1e9


@dataclass(frozen=True)
class Footprint:
    """Bytes on the training device at the worst moment, by what they are for."""

    embeddings: int
    heads: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.embeddings + self.heads + self.activations

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIGABYTE:.2f}" for name, size in asdict(self).items())
        return f"{self.total / GIGABYTE:.2f} GB ({parts})"


def predict(configs: Sequence[Config], rows: int, dim: int, views: int, device: torch.device) -> Footprint:
    """Peak of a pass over `rows` images of width `dim` with `views` views each in the bank."""
    first, trials = configs[0], len(configs)
    width = min(dim, COMPONENTS) if first.heads.scale in POWER else dim
    clusters = max(config.heads.clusters for config in configs)
    k = first.neighbors.k if "neighbors" in first.pairs.source else 0
    bank = rows * (1 + views) * width * FLOAT
    half = rows * (1 + views) * dim * HALF
    block = min(rows, BLOCK_ROWS) * (1 + views) * dim * FLOAT
    compared = rows * (min(dim, COMPONENTS) if first.neighbors.scale in POWER else dim) * FLOAT if k else 0
    loading = max(READING_COPIES * half, half + SCALING_COPIES * block + SEARCH_COPIES * compared)
    one = first.heads.model_copy(update={"count": 1})
    per_head = sum(weight.numel() for weight in init_heads(one, width, [clusters], [0]).weights.values())
    batch = 2 * min(first.train.batch_size, rows)
    heads = trials * first.heads.count
    together = heads_per_block(first, batch, clusters) if device.type == "cpu" else heads
    widest = clusters if first.heads.kind == "linear" else max(clusters, first.heads.hidden)
    kept = heads * batch * clusters  # what the teachers said, until the students have learned it
    work = WORK_COPIES[first.heads.kind] * together * batch * widest
    return Footprint(
        embeddings=bank * (2 if views else 1) + loading + rows * k * INDEX,
        heads=HEAD_COPIES * heads * per_head * FLOAT,
        activations=(kept + work + batch * width) * FLOAT,
    )


def check_memory(configs: Sequence[Config], cache: EmbeddingCache, rows: int, device: torch.device) -> Footprint:
    """The predicted peak of a pass.

    Raises
    ------
    UserError
        More than `device` has free; the sentence names the setting to lower.
    """
    views = cache.views if "views" in configs[0].pairs.source else 0
    footprint, free = predict(configs, rows, cache.dim, views, device), free_memory(device)
    if footprint.total > free:
        raise UserError(
            f"training needs about {footprint}, and {free / GIGABYTE:.2f} GB are free on {device}; "
            f"{_advice(configs, footprint, free)}"
        )
    return footprint


def _advice(configs: Sequence[Config], footprint: Footprint, free: int) -> str:
    first, sizes = configs[0], asdict(footprint)
    share = max(0.0, 1 - (footprint.total - free) / max(sizes.values()))  # that the largest part may keep

    def less(count: int) -> int:
        return max(1, int(count * share))

    match max(sizes, key=lambda name: sizes[name]):
        case "embeddings" if "views" in first.pairs.source:
            return "train without views (--set pairs.source=neighbors) or on fewer images"
        case "embeddings":
            return f"train on a split of at most {share:.0%} of these images (--set train.split=NAME)"
        case "activations":
            return f"lower train.batch_size from {first.train.batch_size} to {less(first.train.batch_size)} or less"
        case _ if len(configs) > 1:
            return f"train {less(len(configs))} trials at a time instead of {len(configs)}"
        case _:
            return f"lower heads.count from {first.heads.count} to {less(first.heads.count)} or less"


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
