"""How much memory a pass of stage two takes, said before it starts; too much is one sentence, not a killed process.

What allocates says how much, beside the code that does; here it is added up.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from temi.cache import EmbeddingCache
from temi.cache.words import counted
from temi.pipeline import limits
from temi.pipeline.config import Config
from temi.pipeline.errors import UserError
from temi.pipeline.features.neighbors import search_bytes
from temi.pipeline.features.scaling import block_bytes, fitting_bytes, scaled_width
from temi.pipeline.heads.bank import Place, bank_bytes
from temi.pipeline.heads.stack import head_size
from temi.pipeline.heads.trainer import heads_bytes, step_bytes
from temi.pipeline.runs.label_free import scoring_bytes
from temi.pipeline.runs.model import assigning_bytes
from temi.pipeline.runs.novelty import novelty_bytes
from temi.pipeline.start.find import start_bytes

FORMATTED = 1200  # bytes of an image in the assignments, name included, a shard at a time
GIGABYTE = 1e9
PHASES = (("search",), ("bank", "reading"), *(("bank", "heads", own) for own in ("start", "activations", "results")))


@dataclass(frozen=True)
class Footprint:
    """Bytes that a pass takes, by what they are for, and where its bank goes. PHASES says what is held at once.

    Attributes
    ----------
    search : finding neighbors
    bank : scaled embeddings, and the neighbor graph
    reading : scaling the cache block by block
    heads : weights and what is kept for each
    start : graphs, their cuts, and learning these
    activations : of one step
    results : assigning every image, scores, and knowing what is unlike all of them
    place : of the bank; see pipeline/heads/bank.py
    """

    search: int
    bank: int
    reading: int
    heads: int
    start: int
    activations: int
    results: int
    place: Place = "device"

    @property
    def total(self) -> int:
        """At the worst moment."""
        return max(sum(self._sizes(phase).values()) for phase in PHASES)

    @property
    def rest(self) -> int:
        """The same without the bank."""
        return sum(self.worst.values())

    @property
    def worst(self) -> dict[str, int]:
        """What is held at the worst moment of a pass whose bank is elsewhere."""
        phases = (self._sizes(tuple(name for name in phase if name != "bank")) for phase in PHASES)
        return max(phases, key=lambda sizes: sum(sizes.values()))

    def _sizes(self, phase: tuple[str, ...]) -> dict[str, int]:
        return {name: getattr(self, name) for name in phase}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIGABYTE:.2f}" for name, size in asdict(self).items() if name != "place")
        return f"{self.total / GIGABYTE:.2f} GB ({parts})"


def footprint_of(
    configs: Sequence[Config],
    rows: int,
    dim: int,
    views: int,
    device: torch.device,
    block_rows: int = 4096,
) -> Footprint:
    """Peak of a pass over `rows` images of width `dim` with `views` views each, read by `block_rows`."""
    first, trials, kind = configs[0], len(configs), device.type
    held = views if "views" in first.pairs.source else 0
    counts = [config.heads.clusters for config in configs]
    width, clusters = scaled_width(first.heads.scale, dim, views > 0), max(counts)
    k = first.neighbors.k if "neighbors" in first.pairs.source else 0
    block = block_bytes(min(rows, block_rows), dim)
    fitting = fitting_bytes((first.heads.scale, first.neighbors.scale), dim)
    searching = search_bytes(rows, scaled_width(first.neighbors.scale, dim, views > 0), k, kind)
    heads, (weights, widest) = first.heads.count, head_size(first.heads, width, clusters)
    scoring = assigning_bytes(rows, heads, widest) + scoring_bytes(rows, width, heads, clusters)
    return Footprint(
        search=searching + block + fitting if k else 0,
        bank=bank_bytes(rows, held, width, k),
        reading=max(1, held) * block + fitting,
        heads=heads_bytes(trials, heads, weights),
        start=start_bytes(counts, rows, dim, kind) if first.start.kind != "random" else 0,
        activations=step_bytes(first, trials, rows, width, widest, clusters, kind),
        results=block + block_rows * FORMATTED + max(novelty_bytes(rows, width, clusters, kind), scoring),
    )


def check_memory(configs: Sequence[Config], cache: EmbeddingCache, rows: int, device: torch.device) -> Footprint:
    """The predicted peak of a pass, with the bank where there is room for it.

    Raises
    ------
    UserError
        Even without the bank it is more than `device` has free; the sentence names the setting to lower.
    """
    footprint = footprint_of(configs, rows, cache.dim, cache.views, device, cache.manifest.shards[0].rows)
    free, on_host = free_memory(device), free_memory(torch.device("cpu"))
    if budget := configs[0].train.memory:
        on_host = min(on_host, int(budget * GIGABYTE))
        free = min(free, on_host) if device.type == "cpu" else free
    if footprint.total <= free:
        return footprint
    if footprint.rest > free:
        if budget and budget * GIGABYTE < footprint.rest <= free_memory(device):
            raise UserError(
                f"training needs about {footprint}, {_at_least(footprint)} at once without the bank, and train.memory "
                f"= {budget:g} allows less; set train.memory to {_at_least(footprint, unit='')} or more"
            )
        raise UserError(
            f"training needs about {footprint}, and {free / GIGABYTE:.2f} GB are free on {device}; "
            f"{_advice(configs, footprint, free)}"
        )
    fits_host = device.type != "cpu" and footprint.bank + max(footprint.search, footprint.reading) <= on_host
    return replace(footprint, place="host" if fits_host else "disk")


def _at_least(footprint: Footprint, unit: str = " GB") -> str:
    """What a pass takes without its bank, in GB, rounded up."""
    return f"{math.ceil(footprint.rest / GIGABYTE * 100) / 100:.2f}{unit}"


def _advice(configs: Sequence[Config], footprint: Footprint, free: int) -> str:
    first, sizes = configs[0], footprint.worst
    worst = max(sizes, key=lambda name: sizes[name])
    share = max(0.0, 1 - (footprint.rest - free) / sizes[worst])  # that the largest part may keep

    def less(count: int) -> int:
        return max(1, int(count * share))

    match worst:
        case "search" | "reading" | "start" | "results" if share < 0.01:
            return f"free {_at_least(footprint)} there, or train on a machine that has more"
        case "search" | "reading" | "start" | "results":
            return f"train on a split of at most {share:.0%} of these images (--set train.split=NAME)"
        case "activations":
            return f"lower train.batch_size from {first.train.batch_size} to {less(first.train.batch_size)} or less"
        case _ if len(configs) > 1:
            return f"train {counted(less(len(configs)), 'trial')} at a time instead of {len(configs)}"
        case _:
            return f"lower heads.count from {first.heads.count} to {less(first.heads.count)} or less"


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return limits.free_memory()
