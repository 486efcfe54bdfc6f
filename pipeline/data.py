"""What stage two trains on: whole tensors on the training device, and batches of row indices into them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cache import EmbeddingCache
from pipeline.config import Config, PairConfig
from pipeline.errors import UserError
from pipeline.mine import check_count, mine_neighbors
from pipeline.scaling import Scaling


def training_rows(cache: EmbeddingCache, split: str = "") -> Int64[np.ndarray, " n"]:
    """Rows that stage two may train on: readable, and of `split` (empty: of ``train`` if there is one, else all)."""
    if split and split not in cache.splits:
        raise UserError(f"{cache.folder} has no split {split!r}; it has {', '.join(cache.splits) or 'none'}")
    start, stop = cache.splits.get(split or "train", (0, cache.rows))
    return start + np.flatnonzero(cache.ok[start:stop])


@dataclass(frozen=True)
class TrainingSet:
    """The scaled bank of embeddings and its neighbor graph, on the training device.

    Attributes
    ----------
    rows : (N,) cache rows behind the bank's rows
    bank : (N * (1 + V), D) float32; row i * (1 + V) is image i, the V that follow are its views
    views : V held in the bank; 0 where pairs do not use them
    neighbors : (N, K) positions in `rows`; (N, 0) where pairs do not use them
    scaling : how embeddings became the bank's rows
    """

    rows: Int64[np.ndarray, " N"]
    bank: Float[Tensor, "NV D"]
    views: int
    neighbors: Int64[Tensor, "N K"]
    scaling: Scaling

    @property
    def originals(self) -> Float[Tensor, "N D"]:
        """The images themselves, without their views."""
        return self.bank[:: 1 + self.views]


def load_training_set(cache: EmbeddingCache, config: Config, device: torch.device, scratch: Path) -> TrainingSet:
    """Read the rows to train on, mine or reuse their neighbors, and put both on `device`.

    `scratch` takes the neighbor graph where the cache's own folder is read-only. Labels are not read.
    """
    rows = training_rows(cache, config.train.split)
    check_settings(cache, config, len(rows))
    with_views = "views" in config.pairs.source
    embedding = torch.from_numpy(cache.embedding()[rows]).to(device)
    scaling = Scaling.fit(config.heads.scale, embedding)
    bank = scaling(embedding)
    if with_views:
        views = torch.from_numpy(cache.view_embedding()[rows]).to(device)
        bank = torch.cat([bank[:, None], scaling(views)], dim=1).flatten(0, 1)
    neighbors = np.empty((len(rows), 0), dtype=np.int64)
    if "neighbors" in config.pairs.source:
        index, _ = mine_neighbors(cache, rows, config.neighbors.k, config.neighbors.scale, scratch)
        neighbors = index.astype(np.int64)
    return TrainingSet(rows, bank, cache.views if with_views else 0, torch.from_numpy(neighbors).to(device), scaling)


def check_settings(cache: EmbeddingCache, config: Config, n: int) -> None:
    """Raise a UserError where `config` asks for more than the `n` images to train on can give."""
    if n < 2:
        raise UserError(f"{cache.folder} has {n} readable images to train on; embed more (see failures.csv there)")
    if config.heads.clusters > n:
        raise UserError(
            f"heads.clusters = {config.heads.clusters} is more than the {n} images to train on; "
            f"ask for at most {n} clusters"
        )
    if "neighbors" in config.pairs.source:
        check_count(config.neighbors.k, n)
    if "views" in config.pairs.source and not cache.views:
        raise UserError(
            f"pairs.source = {config.pairs.source} needs augmented views, and {cache.folder} has none; "
            "embed with --set embed.views=2 or use --set pairs.source=neighbors"
        )


class Batches:
    """Row indices of every step's pairs, a function of (seed, epoch) alone, so a resume needs no generator state.

    An epoch is one permutation of the rows cut into whole batches; partners are drawn for the whole epoch at once.
    """

    def __init__(self, data: TrainingSet, pairs: PairConfig, batch_size: int):
        self.data, self.pairs = data, pairs
        self.size = min(batch_size, len(data.rows))
        self.per_epoch = len(data.rows) // self.size

    def bank_rows(self, first_step: int, stop: int) -> Iterator[Int64[Tensor, " M"]]:
        """For each step of [first_step, stop): B anchors then their B partners, as rows of the bank."""
        step = first_step
        while step < stop:
            epoch, position = divmod(step, self.per_epoch)
            drawn = self._draw(epoch)[position : position + stop - step]
            yield from drawn
            step += len(drawn)

    def _draw(self, epoch: int) -> Int64[Tensor, "steps M"]:
        generator = torch.Generator().manual_seed(self.pairs.seed * 1_000_003 + epoch)
        n, k, views = len(self.data.rows), self.data.neighbors.shape[1], self.data.views
        count = self.per_epoch * self.size
        anchor = torch.randperm(n, generator=generator)[:count]
        slot = torch.randint(max(k, 1), (count,), generator=generator)
        own = self.pairs.source == "views"  # the image itself against one of its views, never against itself
        anchor_view = torch.randint(1 if own else views + 1, (count,), generator=generator)
        partner_view = torch.randint(int(own), views + 1, (count,), generator=generator)
        device = self.data.bank.device
        anchor, slot = anchor.to(device), slot.to(device)
        partner = self.data.neighbors[anchor, slot] if k else anchor
        pairs = torch.stack(
            [anchor * (1 + views) + anchor_view.to(device), partner * (1 + views) + partner_view.to(device)]
        )
        return pairs.view(2, self.per_epoch, self.size).transpose(0, 1).reshape(self.per_epoch, 2 * self.size)
