"""Shards of a cache, made one after the other, and what is said while they are.

A thread writes finished shards. The batches of a shard depend on the shard alone, so a resumed cache equals an
uninterrupted one, whoever makes which.
"""

import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from temi.cache import EmbeddingCache, Shard, ShardWriter
from temi.cache.more_views import ViewsWriter
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbone import Backbone
from temi.pipeline.encode.forward import PARTS, Clock, EmbeddedBatch, batch_size, cut, embed_rows, stored
from temi.pipeline.encode.views import ViewPolicy
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageSource
from temi.pipeline.progress import Progress


@dataclass(frozen=True)
class Step:
    """What a batch came to, for whoever shows progress.

    Attributes
    ----------
    rows : images in it
    unreadable : how many of them could not be read
    note : which shard it is of
    notes : row -> what was assumed to read it
    seconds : at the end of all batches, where the time went
    """

    rows: int = 0
    unreadable: int = 0
    note: str = ""
    notes: Mapping[int, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


Steps = Generator[Step, None, None]


def make_shards(
    writer: ShardWriter,
    pending: Sequence[Shard],
    images: ImageSource,
    backbone: Backbone,
    policy: ViewPolicy,
    config: EmbedConfig,
) -> Steps:
    """Make the `pending` shards, with a step for each batch; each is written while the next one is computed."""
    size = batch_size(config, backbone.device)
    batches = [batch for shard in pending for batch in cut(shard.start, shard.stop, size)]
    clock, written = Clock(lanes=backbone.lanes), _done()
    there = writer.before if isinstance(writer, ViewsWriter) else None
    policy = replace(policy, first=there.views) if there else policy
    stream = embed_rows(backbone, images, batches, policy=policy, workers=config.workers, clock=clock)
    with ThreadPoolExecutor(1) as background:
        for shard in pending:
            before = clock.seconds.copy()
            parts: list[EmbeddedBatch] = []
            while not parts or parts[-1].rows.stop < shard.stop:
                parts.append(next(stream))
                yield _step(parts[-1], shard, writer)
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
    yield Step(seconds=clock.seconds)


def show(steps: Steps, total: int, keys: Sequence[str]) -> None:
    """Follow `steps` to their end with a count of `total` images, then say what was assumed and where the time went."""
    unreadable, notes, seconds = 0, dict[int, str](), dict.fromkeys(PARTS, 0.0)
    with Progress("embed", total, "img") as progress, closing(steps):
        for step in steps:
            unreadable += step.unreadable
            notes |= step.notes
            seconds = {part: value + step.seconds.get(part, 0.0) for part, value in seconds.items()}
            progress.advance(step.rows, step.note + (f", {unreadable} unreadable" if unreadable and step.note else ""))
    for line in _noted(notes, keys):
        print(line, file=sys.stderr)
    if total:
        print(_summary(seconds), file=sys.stderr)


def _known_failures(
    before: EmbeddingCache, shard: Shard, failures: Mapping[int, str], keys: Sequence[str]
) -> dict[int, str]:
    """Rows of `shard` that could not be read when the cache was made; UserError where another cannot be read now."""
    known = {row: why for row, why in before.unusable.items() if shard.start <= row < shard.stop}
    if lost := [row for row in failures if row not in known]:
        raise UserError(
            f"{keys[lost[0]]} (row {lost[0]}) could be read when {before.folder} was made and cannot be now "
            f"({failures[lost[0]]}); restore it, and the same command goes on"
        )
    return known


def _step(batch: EmbeddedBatch, shard: Shard, writer: ShardWriter) -> Step:
    note = f"shard {shard.index + 1}/{len(writer.manifest.shards)}"
    return Step(len(batch.rows), len(batch.failures), note, batch.notes)


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


def _summary(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values()) or 1.0
    shares = ", ".join(f"{part} {value:.1f} s ({value / total:.0%})" for part, value in seconds.items())
    return f"embed: {total:.1f} s: {shares}"
