"""What stage two trains on: whole tensors on the training device, and batches of row indices into them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from temi.pipeline.config import Config, PairConfig
from temi.pipeline.features.features import Features
from temi.pipeline.features.scaling import Scaling
from temi.pipeline.heads.bank import Place, Prefetch, empty_bank

WINDOW = 2**19  # rows whose pairs are drawn at once


@dataclass(frozen=True)
class TrainingSet:
    """The scaled bank of embeddings and its neighbor graph.

    Attributes
    ----------
    bank : (N * (1 + V), D) float32; row i * (1 + V) is image i, the V that follow are its views
    views : V held in the bank; 0 where pairs do not use them
    neighbors : (N, K) positions of rows; (N, 0) where pairs do not use them
    scaling : how embeddings became the bank's rows; on the training device
    prefetch : what gathers batches where `bank` and `neighbors` are not on the training device; see bank.py
    """

    bank: Float[Tensor, "NV D"]
    views: int
    neighbors: Int32[Tensor, "N K"]
    scaling: Scaling
    prefetch: Prefetch | None = None

    def __len__(self) -> int:
        return len(self.neighbors)

    @property
    def device(self) -> torch.device:
        """The training device."""
        return self.scaling.shift.device

    def ask(self, rows: Int64[Tensor, " M"]) -> None:
        """Say that these rows of the bank will be gathered after those asked for before."""
        if self.prefetch is not None:
            self.prefetch.ask(rows)

    def gather(self, rows: Int64[Tensor, " M"], out: Float[Tensor, "M D"]) -> None:
        """Copy these rows of the bank into `out`, on the training device."""
        if self.prefetch is None:
            torch.index_select(self.bank, 0, rows, out=out)
        else:
            out.copy_(self.prefetch.take(rows))

    @property
    def originals(self) -> Float[Tensor, "N D"]:
        """The images themselves, without their views."""
        return self.bank[:: 1 + self.views]


def load_training_set(
    features: Features, config: Config, place: Place = "device", scratch: Path | None = None
) -> TrainingSet:
    """Find or reuse the neighbors of all rows, and fill the bank.

    `scratch` takes the bank where its `place` is the disk.
    """
    rows, device = len(features), features.device
    views = features.view_count if "views" in config.pairs.source else 0
    neighbors = np.empty((rows, 0), dtype=np.int32)
    if "neighbors" in config.pairs.source:  # first: what the search needs is free again when the bank is filled
        neighbors = features.neighbors(config.neighbors.k, config.neighbors.scale)[0]
    scaling = features.scaling(config.heads.scale)
    bank, file = empty_bank((rows * (1 + views), scaling.width), place, device, scratch)
    by_image = bank.view(rows, 1 + views, -1)
    scaling(features.embedding, out=by_image[:, 0])
    if views and features.views is not None:
        scaling(features.views, out=by_image[:, 1:])
    prefetch = None if place == "device" else Prefetch(bank, device, file)
    return TrainingSet(bank, views, torch.from_numpy(neighbors).to(bank.device), scaling, prefetch)


class Batches:
    """Row indices of every step's pairs, a function of (seed, epoch) alone, so a resume needs no generator state.

    An epoch is one permutation of the rows cut into whole batches; partners are drawn for WINDOW rows of it at a time.
    Rows come from anywhere: a window of shards would hold few classes, as folders are listed class by class.
    Of several processes (`part` is rank and number) each is given its part of every batch.
    """

    def __init__(self, data: TrainingSet, pairs: PairConfig, batch_size: int, part: tuple[int, int] = (0, 1)):
        self.data, self.pairs, self.part = data, pairs, part
        self.size = min(batch_size, len(data))
        self.per_epoch = len(data) // self.size

    def bank_rows(self, first_step: int, stop: int) -> Iterator[Int64[Tensor, " M"]]:
        """For each step of [first_step, stop): B anchors then their B partners, as rows of the bank.

        The rows of a step are asked for before those of the step before it are given out.
        """
        given = None
        for rows in self._drawn(first_step, stop):
            self.data.ask(rows)
            if given is not None:
                yield given
            given = rows
        if given is not None:
            yield given

    def _drawn(self, first_step: int, stop: int) -> Iterator[Int64[Tensor, " M"]]:
        step = first_step
        while step < stop:
            epoch, skipped = divmod(step, self.per_epoch)
            for pairs in self._windows(epoch):
                drawn = pairs[skipped : skipped + stop - step]
                skipped = max(0, skipped - len(pairs))
                rank, processes = self.part
                yield from drawn.view(len(drawn), 2, self.size).chunk(processes, dim=2)[rank].flatten(1)
                step += len(drawn)
                if step == stop:
                    return

    def _windows(self, epoch: int) -> Iterator[Int64[Tensor, "steps M"]]:
        """The pairs of an epoch, consecutive steps at a time."""
        generator = torch.Generator().manual_seed(self.pairs.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.data), generator=generator)[: self.per_epoch * self.size]
        for anchor in torch.split(order, max(1, WINDOW // self.size) * self.size):
            yield self._draw(anchor, generator)

    def _draw(self, anchor: Int64[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, "steps M"]:
        """Pairs of these rows and their partners, a step in a row."""
        k, views, count = self.data.neighbors.shape[1], self.data.views, len(anchor)
        slot = torch.randint(max(k, 1), (count,), generator=generator)
        own = self.pairs.source == "views"  # the image itself against one of its views, never against itself
        anchor_view = torch.randint(1 if own else views + 1, (count,), generator=generator)
        partner_view = torch.randint(int(own), views + 1, (count,), generator=generator)
        device = self.data.bank.device
        anchor, slot = anchor.to(device), slot.to(device)
        partner = self.data.neighbors[anchor, slot].long() if k else anchor
        pairs = torch.stack(
            [anchor * (1 + views) + anchor_view.to(device), partner * (1 + views) + partner_view.to(device)]
        )
        return pairs.view(2, -1, self.size).transpose(0, 1).reshape(-1, 2 * self.size)
