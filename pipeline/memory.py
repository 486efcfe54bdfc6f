"""How much memory a pass of stage two takes, said before it starts; too much is one sentence, not a killed process."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cache import EmbeddingCache
from pipeline.bank import Place
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.exact import block_bytes
from pipeline.heads import init_heads
from pipeline.mine import exact_rows
from pipeline.novelty import SAMPLE
from pipeline.scaling import COMPONENTS, POWER
from pipeline.train import heads_per_block

FLOAT, DOUBLE, INDEX = 4, 8, 4  # bytes
HEAD_COPIES = 13  # student, teacher, two moments, best checkpoint, and while those four are written, their bytes twice
BLOCK_COPIES = 10  # bytes per value of a block of the cache while it is scaled: as read, as chosen, and two in float32
WHITENING_COPIES = 6  # of a covariance and its eigenvectors, in float64
SEARCH_COPIES = 2.5  # of the rows that neighbors are searched among: as scaled, at unit norm, and in half precision;
INDEX_COPIES = 3  # or in an approximate search's index
FOUND = 24  # bytes per neighbor while a graph is searched for and written
KEPT_COPIES = 3  # of what the teachers said: one in use, and as measured two that the C library holds on to
WORK_COPIES = {"linear": 4, "published": 10, "mlp-bn": 12}  # of a block's widest activation; with a graph, far more
ASSIGNMENT = 400  # bytes of an image in the table of assignments, its name included
GIGABYTE = 1e9


@dataclass(frozen=True)
class Footprint:
    """Bytes that a pass takes, by what they are for, and where its bank goes.

    Attributes
    ----------
    bank : scaled embeddings, and the neighbor graph
    search : reading and scaling the cache, and searching for neighbors
    heads : weights and what is kept for each
    activations : of one step
    results : assigning every image, and knowing what is unlike all of them
    place : of the bank; see pipeline/bank.py
    """

    bank: int
    search: int
    heads: int
    activations: int
    results: int
    place: Place = "device"

    @property
    def rest(self) -> int:
        """All but the bank: it is searched before a step is made, and assigned after the last."""
        return self.heads + max(self.search, self.activations, self.results)

    @property
    def total(self) -> int:
        """At the worst moment."""
        return self.bank + self.rest

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIGABYTE:.2f}" for name, size in asdict(self).items() if name != "place")
        return f"{self.total / GIGABYTE:.2f} GB ({parts})"


def predict(
    configs: Sequence[Config], rows: int, dim: int, views: int, device: torch.device, block_rows: int = 4096
) -> Footprint:
    """Peak of a pass over `rows` images of width `dim`, with `views` views each in the bank, read by `block_rows`."""
    first, trials = configs[0], len(configs)
    width = min(dim, COMPONENTS) if first.heads.scale in POWER else dim
    clusters = max(config.heads.clusters for config in configs)
    k = first.neighbors.k if "neighbors" in first.pairs.source else 0
    block = min(rows, block_rows) * max(1, views) * dim * BLOCK_COPIES
    whitening = (
        WHITENING_COPIES * dim * dim * DOUBLE if {first.heads.scale, first.neighbors.scale} & POWER.keys() else 0
    )
    copies = INDEX_COPIES if rows > exact_rows() else SEARCH_COPIES
    compared = rows * (min(dim, COMPONENTS) if first.neighbors.scale in POWER else dim) * FLOAT
    searching = int(copies * compared) + block_bytes(rows, device.type) + rows * k * FOUND
    sample = min(rows, SAMPLE)
    calibrating = int((1 + SEARCH_COPIES) * sample * width * FLOAT) + block_bytes(sample, device.type)
    one = first.heads.model_copy(update={"count": 1})
    per_head = sum(weight.numel() for weight in init_heads(one, width, [clusters], [0]).weights.values())
    batch = 2 * min(first.train.batch_size, rows)
    heads = trials * first.heads.count
    together = heads_per_block(first, batch, clusters) if device.type == "cpu" else heads
    widest = clusters if first.heads.kind == "linear" else max(clusters, first.heads.hidden)
    kept = KEPT_COPIES * heads * batch * clusters  # what the teachers said, until the students have learned it
    work = WORK_COPIES[first.heads.kind] * together * batch * widest
    return Footprint(
        bank=rows * (1 + views) * width * FLOAT + rows * k * INDEX,
        search=block + whitening + (searching if k else 0),
        heads=HEAD_COPIES * heads * per_head * FLOAT,
        activations=(kept + work + batch * width) * FLOAT,
        results=max(calibrating, rows * (2 * clusters * FLOAT + first.heads.count * INDEX + ASSIGNMENT)),
    )


def check_memory(configs: Sequence[Config], cache: EmbeddingCache, rows: int, device: torch.device) -> Footprint:
    """The predicted peak of a pass, with the bank where there is room for it.

    Raises
    ------
    UserError
        Even without the bank it is more than `device` has free; the sentence names the setting to lower.
    """
    views = cache.views if "views" in configs[0].pairs.source else 0
    footprint = predict(configs, rows, cache.dim, views, device, cache.manifest.shards[0].rows)
    free, on_host = free_memory(device), free_memory(torch.device("cpu"))
    if budget := configs[0].train.memory:
        on_host = min(on_host, int(budget * GIGABYTE))
        free = min(free, on_host) if device.type == "cpu" else free
    if footprint.total <= free:
        return footprint
    if footprint.rest > free:
        raise UserError(
            f"training needs about {footprint}, and {free / GIGABYTE:.2f} GB are free on {device}; "
            f"{_advice(configs, footprint, free)}"
        )
    fits_host = device.type != "cpu" and footprint.bank + footprint.search <= on_host
    return replace(footprint, place="host" if fits_host else "disk")


def _advice(configs: Sequence[Config], footprint: Footprint, free: int) -> str:
    first, sizes = configs[0], asdict(footprint)
    worst = max(("search", "heads", "activations", "results"), key=lambda name: sizes[name])
    share = max(0.0, 1 - (footprint.rest - free) / sizes[worst])  # that the largest part may keep

    def less(count: int) -> int:
        return max(1, int(count * share))

    match worst:
        case "search" | "results":
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
