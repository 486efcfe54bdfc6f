"""How much memory a pass of stage two takes, said before it starts; too much is one sentence, not a killed process."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from temi.cache import EmbeddingCache
from temi.pipeline import limits
from temi.pipeline.config import Config
from temi.pipeline.errors import UserError
from temi.pipeline.features.exact_search import block_bytes
from temi.pipeline.features.inverted_file import index_bytes
from temi.pipeline.features.neighbors import exact_rows
from temi.pipeline.features.scaling import COMPONENTS, POWER
from temi.pipeline.heads.bank import Place
from temi.pipeline.heads.stack import init_heads
from temi.pipeline.heads.trainer import heads_per_block
from temi.pipeline.runs import model
from temi.pipeline.runs.label_free import COMPARED_ROWS, FOLDS, LINEAR_ROWS
from temi.pipeline.runs.novelty import SAMPLE
from temi.pipeline.start.find import LARGEST
from temi.pipeline.start.layout import ward_rows
from temi.pipeline.start.pool import NEIGHBORS, PLAIN

HALF, FLOAT, DOUBLE, INDEX = 2, 4, 8, 4  # bytes
BLOCK_COPIES = 24  # bytes per value while a block is scaled: float16 read and chosen, five float32 copies
WHITENING_COPIES = 6  # covariance and eigenvectors, float64
SEARCH_COPIES = 1.5  # rows compared with all: at unit norm, and half of that in bfloat16
FOUND = 24  # bytes per neighbor while a graph is found and written
HEAD_COPIES = 5  # student, teacher, two moments, best checkpoint
WRITE_COPIES = 8  # of one trial while it is written: four tensors, as bytes and again packed
KEPT_COPIES = 3  # teacher outputs: one in use, two that the C library keeps (measured)
WORK_COPIES = {"linear": 4, "published": 10, "mlp-bn": 12}  # of the widest activation of a block
EDGE = 40  # bytes per neighbor of a fuzzy graph: 12 an edge, 1.6 edges a neighbor; twice while laid out (measured)
CUT_COPIES = 5  # labelings of all layouts: each kind, communities, matched
WARD_COPIES = 2  # distances of all pairs of Ward's rows, float64
ASSIGNED_COPIES = 5  # of the widest activation while rows are assigned
LINEAR_COPIES = 3  # sample of the linear classifier, float64; held beside the table
SCORED = 16  # bytes of a row while scores are made: its cluster, twice, and its confidence
FORMATTED = 1200  # bytes of an image in the assignments, name included, a shard at a time
SAMPLE_COPIES = 2  # of the sample that is cut, as stored, while near-copies are taken out of it
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
    start : layouts, their cuts, and learning these
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


def predict(
    configs: Sequence[Config],
    rows: int,
    dim: int,
    views: int,
    device: torch.device,
    block_rows: int = 4096,
) -> Footprint:
    """Peak of a pass over `rows` images of width `dim`, with `views` views each in the bank, read by `block_rows`."""
    first, trials = configs[0], len(configs)
    width = min(dim, COMPONENTS) if first.heads.scale in POWER else dim
    clusters = max(config.heads.clusters for config in configs)
    k = first.neighbors.k if "neighbors" in first.pairs.source else 0
    block = min(rows, block_rows) * dim * BLOCK_COPIES
    whitens = {first.heads.scale, first.neighbors.scale} & POWER.keys()
    whitening = WHITENING_COPIES * dim * dim * DOUBLE if whitens else 0
    compared = min(dim, COMPONENTS) if first.neighbors.scale in POWER else dim
    per_head, widest = _head(first, width, clusters)
    batch = 2 * min(first.train.batch_size, rows)
    heads = trials * first.heads.count
    together = heads_per_block(first, batch, clusters) if device.type == "cpu" else heads
    kept = KEPT_COPIES * heads * batch * clusters  # what the teachers said, until the students have learned it
    work = WORK_COPIES[first.heads.kind] * together * batch * widest
    return Footprint(
        search=_searching(rows, compared, k, device) + block + whitening if k else 0,
        bank=rows * (1 + views) * width * FLOAT + rows * k * INDEX,
        reading=max(1, views) * block + whitening,
        heads=(HEAD_COPIES * trials + WRITE_COPIES) * first.heads.count * per_head * FLOAT,
        start=_starting(configs, rows, dim, device) if first.start.kind != "random" else 0,
        activations=(kept + work + batch * width) * FLOAT,
        results=block + block_rows * FORMATTED + _assigning(rows, width, first.heads.count, clusters, widest, device),
    )


def _head(config: Config, width: int, clusters: int) -> tuple[int, int]:
    """Weights of one head, and outputs of its widest layer."""
    heads = init_heads(config.heads.model_copy(update={"count": 1}), width, [clusters], [0])
    return sum(weight.numel() for weight in heads.weights.values()), heads.widest


def _searching(rows: int, width: int, k: int, device: torch.device) -> int:
    if rows > exact_rows():
        return index_bytes(rows, width) + rows * k * FOUND
    return int(SEARCH_COPIES * rows * width * FLOAT) + block_bytes(rows, device.type) + rows * k * FOUND


def _starting(configs: Sequence[Config], rows: int, dim: int, device: torch.device) -> int:
    """The most of: learning the cuts, and the graphs of all layouts while one is mined, laid out, or cut."""
    counts = [config.heads.clusters for config in configs]
    spaces, loaded = len(PLAIN), 0
    if rows > LARGEST:
        rows, loaded = LARGEST, LARGEST * dim * HALF
    graphs = spaces * sum(NEIGHBORS) * rows * EDGE
    mining = _searching(rows, dim, max(NEIGHBORS), device)
    ward = WARD_COPIES * min(rows, ward_rows(max(counts))) ** 2 // 2
    cuts = CUT_COPIES * len(set(counts)) * spaces * (len(NEIGHBORS) + 1) * rows * DOUBLE
    voting = rows * max(counts) * FLOAT
    return loaded + max((SAMPLE_COPIES - 1) * loaded, graphs + max(mining, ward * DOUBLE), cuts + voting)


def _assigning(rows: int, width: int, heads: int, clusters: int, widest: int, device: torch.device) -> int:
    """The most of: calibrating what is novel, aligning the heads, and scoring them."""
    sample = min(rows, SAMPLE)
    calibrating = int((1 + SEARCH_COPIES) * sample * width * FLOAT) + block_bytes(sample, device.type)
    block = min(rows, model.block_rows(heads * widest)) * heads * widest * FLOAT
    linear = min(rows, LINEAR_ROWS) * (LINEAR_COPIES * width + clusters // FOLDS) * DOUBLE
    compared = min(rows, COMPARED_ROWS) * heads * (INDEX + DOUBLE)
    return max(calibrating, ASSIGNED_COPIES * block + rows * SCORED + compared + linear)


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
    fits_host = device.type != "cpu" and footprint.bank + max(footprint.search, footprint.reading) <= on_host
    return replace(footprint, place="host" if fits_host else "disk")


def _advice(configs: Sequence[Config], footprint: Footprint, free: int) -> str:
    first, sizes = configs[0], footprint.worst
    worst = max(sizes, key=lambda name: sizes[name])
    share = max(0.0, 1 - (footprint.rest - free) / sizes[worst])  # that the largest part may keep

    def less(count: int) -> int:
        return max(1, int(count * share))

    match worst:
        case "search" | "reading" | "start" | "results":
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
    return limits.free_memory()
