"""Stage one: every image once through a frozen backbone, into a cache.

Worker processes decode, resize and crop (pipeline/encode/workers.py) while this process runs the backbone, on several
batches at once where its engine does (`Backbone.lanes`); a thread writes finished shards. The batches of a shard depend
on the shard alone, so a resumed cache equals an uninterrupted one.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float16, Float32
from torch import Tensor

from temi.cache import EmbeddingCache, Fingerprint, Manifest, Shard, ShardWriter, plan_shards
from temi.cache.bucket import Bucket, bucket_url
from temi.cache.halves import to_halves
from temi.cache.more_views import ViewsWriter, forget_views, lacks_views, take_in_views
from temi.cache.remote import RemoteWriter, pull_index
from temi.cache.schema import MANIFEST, ORIGIN, SKIPPED
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbones import Backbone, load_backbone
from temi.pipeline.encode.views import ViewPolicy, jitter
from temi.pipeline.encode.workers import DecodedBatch, decode_batches, default_workers, fitting_workers
from temi.pipeline.errors import USER_ERRORS, UserError
from temi.pipeline.images import ImageSource, open_source
from temi.pipeline.images.content import content_digest
from temi.pipeline.images.grown import Listing, continue_cache, describe
from temi.pipeline.images.left_out import found_beside
from temi.pipeline.images.recorded import record_origin
from temi.pipeline.progress import Progress

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


def embed(
    source: str,
    out: Path,
    config: EmbedConfig,
    *,
    root: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> EmbeddingCache | None:
    """Embed all images of `source` into the cache `out`, or finish what an earlier call began.

    Parameters
    ----------
    source, root
        See `pipeline.images.open_source`.
    shard
        (i, n): make the shards whose index is i modulo n; n processes fill one cache, in any order.
    overwrite
        Delete the cache that is there first.

    Returns
    -------
    EmbeddingCache | None
        The finished cache, or None while other processes still owe shards.

    Raises
    ------
    UserError, CacheError
        A mistake or circumstance to mend; finished shards stay, and the same call goes on from there.
    """
    worker, workers = shard
    if not 0 <= worker < workers:
        raise UserError(f"shard {worker}/{workers} does not exist; count from 0/{workers} to {workers - 1}/{workers}")
    images = open_source(source, root=root, max_pixels=config.max_pixels)
    if worker == 0:
        for line in found_beside(images):
            print(line, file=sys.stderr)
    with _working_folder(out, overwrite) as (folder, open_writer):
        return _fill_cache(images, source, root, folder, open_writer, config, shard, overwrite)


OpenWriter = Callable[[Manifest, bytes | None], ShardWriter]


@contextmanager
def _working_folder(out: Path, overwrite: bool) -> Iterator[tuple[Path, OpenWriter]]:
    """Where shards are made, and what writes them to `out`: the folder itself, or one of the moment beside a bucket."""
    url = bucket_url(out)
    if url is None:
        (forget_views if overwrite else take_in_views)(out)
        yield out, lambda manifest, listing: _open_writer(out, manifest, listing, overwrite)
        return
    if overwrite:
        raise UserError(f"--overwrite deletes nothing in a bucket; delete {url} with the provider's tools first")
    bucket = Bucket(url)
    with tempfile.TemporaryDirectory(prefix="temi-") as name:
        sizes = pull_index(bucket, Path(name))
        try:
            yield (
                Path(name),
                lambda manifest, listing: RemoteWriter.open_in(bucket, Path(name), manifest, sizes, listing),
            )
        except USER_ERRORS as error:
            raise type(error)(str(error).replace(name, url)) from None


def _open_writer(out: Path, manifest: Manifest, listing: bytes | None, overwrite: bool) -> ShardWriter:
    """What writes the cache in `out`, or adds views to the one that is there."""
    if overwrite or not (out / MANIFEST).exists() or not lacks_views(Manifest.read(out), manifest):
        return ShardWriter.open(out, manifest, overwrite=overwrite, listing=listing)
    writer = ViewsWriter.open_in(EmbeddingCache.open(out), manifest)
    print(
        f"{out} has {writer.before.views} views of every image: {manifest.views - writer.before.views} more are "
        "embedded, and what is there stays as it is",
        file=sys.stderr,
    )
    return writer


def _fill_cache(
    images: ImageSource,
    source: str,
    root: Path | None,
    out: Path,
    open_writer: OpenWriter,
    config: EmbedConfig,
    shard: tuple[int, int],
    overwrite: bool,
) -> EmbeddingCache | None:
    """Make the shards of `shard` that `out` lacks; the cache, once all are there."""
    worker, workers = shard
    backbone = load_backbone(config if overwrite else _same_engine(config, out))
    policy = view_policy(config)
    images, manifest, listing = plan_cache(images, out, backbone, policy, config, overwrite=overwrite)
    with open_writer(manifest, listing) as writer:
        pending = writer.pending(worker, workers)
        if worker == 0:
            record_origin(out, source, root, images)
            if isinstance(writer, RemoteWriter):
                writer.send(ORIGIN, SKIPPED)
        fill(writer, pending, images, backbone, policy, config)
        return writer.finish()


def _same_engine(config: EmbedConfig, out: Path) -> EmbedConfig:
    """`config` with torch in place of auto where torch began the cache: OpenVINO may have been installed since."""
    if config.engine != "auto" or not (out / MANIFEST).exists():
        return config
    began = Manifest.read(out).fingerprint.precision
    return config if "openvino" in began else config.model_copy(update={"engine": "torch"})


def view_policy(config: EmbedConfig) -> ViewPolicy:
    """How `config` draws views."""
    return ViewPolicy(config.views, config.seed, config.crop_scale, config.flip, config.jitter)


def plan_cache(
    images: ImageSource, out: Path, backbone: Backbone, policy: ViewPolicy, config: EmbedConfig, *, overwrite: bool
) -> tuple[ImageSource, Manifest, bytes | None]:
    """The images in the order of the rows, the manifest of the cache in `out` that holds them, and what it keeps of
    their list: a new cache, the one that is there, or that one grown by the images it has not."""
    content = config.digest == "content"
    now = Listing.of(images, content=content)
    digest = now.digest if now else content_digest(images) if content else images.digest
    there = Manifest.read(out) if (out / MANIFEST).exists() and not overwrite else None
    same = there is not None and there.generation == 0 and digest == there.fingerprint.images
    grown = continue_cache(images, now, out, there) if there and now and not same else None
    if there is None or grown is None:
        return images, plan(images, backbone, policy, config, digest), now.to_parquet() if now else None
    fingerprint = _fingerprint(backbone, policy, grown.digest)
    if not grown.added and (grown.removed, grown.changed) == (there.removed, there.changed):
        return grown, replace(there, fingerprint=fingerprint), None
    print(
        f"the cache grows: {describe(grown)} since it was made; its {there.rows:,} rows stay as they are",
        file=sys.stderr,
    )
    gone = {"removed": grown.removed, "changed": grown.changed}
    manifest = there.grown(fingerprint, grown.added, config.shard_rows, classes=grown.classes, **gone)
    return grown, manifest, grown.listing.take(range(there.rows, manifest.rows)).to_parquet()


def plan(images: ImageSource, backbone: Backbone, policy: ViewPolicy, config: EmbedConfig, digest: str) -> Manifest:
    """The manifest of the new cache that these would make; `digest` tells the list of images."""
    rows = len(images.keys)
    shards = plan_shards(rows, config.shard_rows)
    fingerprint = _fingerprint(backbone, policy, digest)
    return Manifest(fingerprint, rows, backbone.dim, shards, dict(images.splits), tuple(images.classes))


def _fingerprint(backbone: Backbone, policy: ViewPolicy, digest: str) -> Fingerprint:
    return Fingerprint(
        backbone=backbone.name,
        revision=backbone.revision,
        preprocessing=backbone.preprocessing.describe(),
        pooling=backbone.pooling,
        precision=backbone.arithmetic,
        view_policy=policy.describe(),
        view_seed=policy.seed if policy.count else 0,
        views=policy.count,
        images=digest,
    )


def fill(
    writer: ShardWriter,
    pending: Sequence[Shard],
    images: ImageSource,
    backbone: Backbone,
    policy: ViewPolicy,
    config: EmbedConfig,
) -> None:
    """Make the `pending` shards; each is written while the next one is computed."""
    size = batch_size(config, backbone.device)
    batches = [batch for shard in pending for batch in cut(shard.start, shard.stop, size)]
    clock, written, unreadable, notes = Clock(lanes=backbone.lanes), _done(), 0, dict[int, str]()
    there = writer.before if isinstance(writer, ViewsWriter) else None
    policy = replace(policy, first=there.views) if there else policy
    stream = embed_rows(backbone, images, batches, policy=policy, workers=config.workers, clock=clock)
    total = sum(shard.rows for shard in pending)
    with Progress("embed", total, "img") as progress, ThreadPoolExecutor(1) as background:
        for shard in pending:
            before = clock.seconds.copy()
            parts: list[EmbeddedBatch] = []
            while not parts or parts[-1].rows.stop < shard.stop:
                parts.append(next(stream))
                unreadable += len(parts[-1].failures)
                notes |= parts[-1].notes
                note = f"shard {shard.index + 1}/{len(writer.manifest.shards)}"
                progress.advance(len(parts[-1].rows), note + (f", {unreadable} unreadable" if unreadable else ""))
            failures, keys = {row: why for part in parts for row, why in part.failures.items()}, images.keys
            failures = _known_failures(there, shard, failures, keys) if there else failures
            with clock("forward"):  # where a GPU is waited for
                views = stored(torch.cat([part.views for part in parts]), keys, shard.start, failures)
                if there is None:
                    embedding = stored(torch.cat([part.embedding for part in parts]), keys, shard.start, failures)
                else:
                    embedding = there.embedding(shard.start, shard.stop)
                    views = np.concatenate([there.view_embedding(shard.start, shard.stop), views], 1)
            with clock("write"):
                written.result()
            seconds = {part: clock.seconds[part] - before[part] for part in PARTS}
            written = background.submit(_write, writer, shard, images, embedding, views, failures, seconds)
        with clock("write"):
            written.result()
    for line in _noted(notes, images.keys):
        print(line, file=sys.stderr)
    if pending:
        print(_summary(clock), file=sys.stderr)


def _known_failures(
    before: EmbeddingCache, shard: Shard, failures: Mapping[int, str], keys: Sequence[str]
) -> dict[int, str]:
    """Rows of `shard` that could not be read when the cache was made; UserError where another cannot be read now."""
    known = {row: why for row, why in before.failures.items() if shard.start <= row < shard.stop}
    if lost := [row for row in failures if row not in known]:
        raise UserError(
            f"{keys[lost[0]]} (row {lost[0]}) could be read when {before.folder} was made and cannot be now "
            f"({failures[lost[0]]}); restore it, and the same command goes on"
        )
    return known


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
            f"note: {count} processes decode images instead of {asked}: /dev/shm has no room for more; "
            "a container has more by --shm-size",
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
        with single_torch_thread():
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


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """One torch thread in this thread and those it starts: the lanes are as many as the cores already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


def _write(
    writer: ShardWriter,
    shard: Shard,
    images: ImageSource,
    embedding: np.ndarray,
    views: np.ndarray,
    failures: Mapping[int, str],
    seconds: Mapping[str, float],
) -> None:
    rows = slice(shard.start, shard.stop)
    keys, labels = images.keys[rows], images.labels[rows]
    writer.write(shard, embedding=embedding, views=views, keys=keys, labels=labels, failures=failures, seconds=seconds)


def _noted(notes: Mapping[int, str], keys: Sequence[str]) -> Iterator[str]:
    """Once for each thing that was assumed: of how many images, and the first of them."""
    for text, count in Counter(notes.values()).most_common():
        first = next(row for row, note in notes.items() if note == text)
        yield f"note: {count:,} x {text} (the first: {keys[first]})"


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _summary(clock: Clock) -> str:
    total = sum(clock.seconds.values()) or 1.0
    shares = ", ".join(f"{part} {clock.seconds[part]:.1f} s ({clock.seconds[part] / total:.0%})" for part in PARTS)
    return f"embed: {total:.1f} s: {shares}"
