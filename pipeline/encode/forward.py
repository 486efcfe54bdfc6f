"""Batches of images through a frozen backbone.

Worker processes decode, resize and crop (pipeline/encode/workers.py) while this process runs the backbone, on several
batches at once where its engine does (`Backbone.lanes`).
"""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float16, Float32
from torch import Tensor

from temi.cache.halves import to_halves
from temi.cache.words import counted
from temi.pipeline.config import EmbedConfig
from temi.pipeline.device import torch_threads
from temi.pipeline.encode.backbone import Backbone
from temi.pipeline.encode.views import ViewPolicy, jitter
from temi.pipeline.encode.workers import DecodedBatch, decode_batches, default_workers, fitting_workers
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageSource

BATCH_SIZES = {"cpu": 16, "cuda": 128}
MEND = "use precision fp32, or another backbone"  # of an embedding that float16 cannot hold
PARTS = ("decode wait", "preprocess", "forward", "write")


@dataclass(frozen=True)
class EmbeddedBatch:
    """What one batch became, still on the backbone's device."""

    rows: range
    embedding: Float32[Tensor, "e D"]  # e = b, or 0 where views are added to a cache that has it
    views: Float32[Tensor, "b V D"]
    failures: dict[int, str]  # row -> why it could not be read; its embedding means nothing
    notes: dict[int, str]  # row -> what was assumed to read it


@dataclass
class Clock:
    """Seconds per named part, of one lane: where `lanes` threads run the backbone, their mean."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    lanes: int = 1
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[part] += (time.perf_counter() - start) / self.lanes


def embed_rows(
    backbone: Backbone,
    images: ImageSource,
    batches: Sequence[range],
    *,
    policy: ViewPolicy | None = None,
    workers: int | str = 0,
    clock: Clock | None = None,
) -> Iterator[EmbeddedBatch]:
    """Embed the rows of `images` named by `batches` (see `cut`), in that order, with `policy.count` views (default 0).

    The inner loop of `embed`, for callers that want embeddings and no cache.
    """
    clock = clock or Clock(lanes=backbone.lanes)
    asked = default_workers(backbone.device) if workers == "auto" else int(workers)
    count = fitting_workers(asked, len(batches[0]) if batches else 0, backbone.preprocessing, policy)
    if count < asked:
        print(
            f"note: {counted(count, 'process decodes', 'processes decode')} images instead of {asked}: /dev/shm has no "
            "room for more (a container has more by --shm-size), or a file may not be as large as a batch "
            "(`ulimit -f`)",
            file=sys.stderr,
        )
    forward, pin = Forward(backbone, clock), backbone.device.type == "cuda"
    decoded = decode_batches(images, backbone.preprocessing, batches, policy, workers=count, pin=pin)
    reading = Lock()

    def embed_next() -> EmbeddedBatch | None:
        with clock("decode wait"), reading:
            batch = next(decoded, None)
        return None if batch is None else forward(batch)

    if backbone.lanes == 1:
        yield from iter(embed_next, None)
    else:
        with torch_threads(1):  # the lanes are as many as the cores already
            yield from _in_order(embed_next, batches, backbone.lanes)


def _in_order(
    embed_next: Callable[[], EmbeddedBatch | None], batches: Sequence[range], lanes: int
) -> Iterator[EmbeddedBatch]:
    """What `embed_next` returns in `lanes` threads at once, in the order of `batches`."""
    pool, finished = ThreadPoolExecutor(lanes), dict[range, EmbeddedBatch]()
    running = {pool.submit(embed_next) for _ in range(2 * lanes)}  # as many wait as run: a lane is never idle
    try:
        for rows in batches:
            while rows not in finished:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for task in done:
                    if batch := task.result():
                        finished[batch.rows] = batch
                        running.add(pool.submit(embed_next))
            yield finished.pop(rows)
    finally:
        pool.shutdown(cancel_futures=True)


def stored(
    rows: Float32[Tensor, "n ... D"], keys: Sequence[str], start: int, failures: Collection[int]
) -> Float16[np.ndarray, "n ... D"]:
    """Rows `start`, `start` + 1, ... as a cache holds them; those of `failures` become zeros.

    Raises
    ------
    CacheError
        float16 cannot hold a row; see `to_halves`.
    """
    values = rows.numpy(force=True)
    values[[row - start for row in failures]] = 0
    return to_halves(values, lambda row: f"the embedding of {keys[start + row]} (row {start + row})", MEND)


def batch_size(config: EmbedConfig, device: torch.device) -> int:
    """Images per forward pass. Automatic sizes are fixed per kind of device, as probing would make a resumed cache
    differ in a bit from an uninterrupted one; they saturate it, and `Forward` backs off where memory is short."""
    return BATCH_SIZES.get(device.type, 16) if config.batch_size == "auto" else config.batch_size


def cut(start: int, stop: int, size: int) -> list[range]:
    """Rows `start` to `stop` in batches of `size`, the last one shorter."""
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


class Forward:
    """The backbone over decoded batches, in smaller pieces once memory ran out."""

    def __init__(self, backbone: Backbone, clock: Clock) -> None:
        self.backbone, self.clock = backbone, clock
        self.limit = sys.maxsize  # images per pass

    @torch.inference_mode()
    def __call__(self, batch: DecodedBatch) -> EmbeddedBatch:
        passed = torch.stack([self._pass(batch, index) for index in range(len(batch.pixels))], 1)
        originals, views = passed[:, : batch.originals], passed[:, batch.originals :]
        return EmbeddedBatch(batch.rows, originals.flatten(0, 1), views, batch.failures, batch.notes)

    def _pass(self, batch: DecodedBatch, index: int) -> Tensor:
        """Originals (`index` 0) or one view of each image."""
        while True:
            try:
                starts = range(0, len(batch.rows), self.limit)
                return torch.cat([self._piece(batch, index, slice(at, at + self.limit)) for at in starts])
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            self._shrink(len(batch.rows))

    def _piece(self, batch: DecodedBatch, index: int, rows: slice) -> Tensor:
        device = self.backbone.device
        with self.clock("preprocess"):
            pixels = batch.pixels[index, rows].to(device, non_blocking=True).float().div_(255)
            if index >= batch.originals:
                pixels = jitter(pixels, batch.jitter[index, rows].to(device, non_blocking=True))
        with self.clock("forward"):
            return self.backbone(pixels)

    def _shrink(self, rows: int) -> None:
        tried = min(self.limit, rows)
        if tried == 1:
            raise UserError(
                f"one image does not fit the memory of {self.backbone.device}; use a smaller backbone or device=cpu"
            )
        self.limit = tried // 2
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
