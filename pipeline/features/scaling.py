"""How embeddings are scaled before neighbors are mined, layouts are made and heads are trained.

=========  =====================================================================================================
none       as they are
l2         unit norm
standardize  per coordinate: mean 0, deviation 1
center     minus the mean of the training rows, then unit norm
root       signed square root, then `center`
whiten25   signed square root, 128 principal components divided by the 4th root of their deviation, unit norm
whiten50   the same, divided by the square root of their deviation
=========  =====================================================================================================

The signed square root is power normalization (Perronnin, Sánchez, Mensink, ECCV 2010): it tames the few channels of a
frozen encoder that are much larger than the rest. Dividing a component of variance w by w^(p/2), p = 0.25 or 0.5, is
softer than whitening (p = 1), which would blow up the noise of the last components.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from temi.pipeline.features.blocks import Embeddings, blocks_of

Kind = Literal["none", "l2", "standardize", "center", "root", "whiten25", "whiten50"]
POWER = {"whiten25": 0.25, "whiten50": 0.5}
COMPONENTS = 128
FLAT = 1e-7  # of the largest variance: below it a component is rounding


@dataclass(frozen=True)
class Scaling:
    """A fitted map of embeddings: x -> f(x) - shift, times `weight`, to unit norm if `unit`.

    Attributes
    ----------
    root : whether f is the signed square root rather than the identity
    shift : (D,)
    weight : (D,) factors, or a (D, D') projection
    unit : whether rows are brought to norm 1
    """

    root: bool
    shift: Float[Tensor, " D"]
    weight: Float[Tensor, "..."]
    unit: bool

    @classmethod
    def fit(cls, kind: Kind, embedding: Embeddings) -> "Scaling":
        """Statistics of the training rows for `kind`."""
        root, rows = kind in ("root", *POWER), len(embedding)
        zero = torch.zeros(embedding.shape[-1], device=embedding.device)
        one = torch.ones_like(zero)
        if kind in ("none", "l2"):
            return cls(root, zero, one, kind == "l2")
        # Sums of blocks are added in float64: float32 would lose the last of millions of rows.
        mean = (_total(x.sum(0) for x in _blocks(embedding, root)) / rows).float()
        if kind in ("center", "root"):
            return cls(root, mean, one, True)
        centered = (x - mean for x in _blocks(embedding, root))
        if kind == "standardize":
            variance = _total(x.square().sum(0) for x in centered) / max(rows - 1, 1)
            return cls(root, mean, 1 / variance.sqrt().float().clamp_min(1e-6), False)
        covariance = _total(x.mT @ x for x in centered) / rows
        return cls(root, mean, _soft_whitening(covariance, POWER[kind]), True)

    @property
    def width(self) -> int:
        """D', the width of a scaled row."""
        return self.weight.shape[-1]

    def __call__(self, embedding: Embeddings, out: Tensor | None = None) -> Tensor:
        """Scaled float32 rows, (..., D) -> (..., D'), into `out` where it is given."""
        shape = (*embedding.shape[:-1], self.width)
        scaled = torch.empty(shape, device=embedding.device) if out is None else out
        done = 0
        for block in blocks_of(embedding):
            scaled[done : done + len(block)] = self.of_block(block)
            done += len(block)
        return scaled

    def of_block(self, embedding: Tensor) -> Tensor:
        """The same in one piece."""
        return self.of_rooted(_rooted(embedding, self.root))

    def of_rooted(self, x: Tensor) -> Tensor:
        """The rest of the map for float32 rows f(x)."""
        x = x - self.shift
        x = x * self.weight if self.weight.ndim == 1 else x @ self.weight
        return F.normalize(x, dim=-1) if self.unit else x


def _blocks(embedding: Embeddings, root: bool) -> Iterator[Tensor]:
    """float32 rows of `embedding`, or their signed roots, block by block."""
    return (_rooted(block, root) for block in blocks_of(embedding))


def _rooted(block: Tensor, root: bool) -> Tensor:
    return signed_root(block.float()) if root else block.float()


def _total(parts: Iterable[Tensor]) -> Tensor:
    total = 0.0 + sum(part.double() for part in parts)
    assert isinstance(total, Tensor)
    return total


def signed_root(x: Tensor) -> Tensor:
    """sign(x) sqrt(|x|)."""
    return x.abs().sqrt_().copysign_(x)


def _soft_whitening(covariance: Float64[Tensor, "D D"], power: float) -> Float[Tensor, "D P"]:
    """The leading eigenvectors, each divided by its eigenvalue^(power / 2).

    In float64: components of small variance are differences of large numbers.
    """
    value, vector = torch.linalg.eigh(covariance)
    value, vector = value.flip(0)[:COMPONENTS], vector.flip(1)[:, :COMPONENTS]
    kept = value > FLAT * value[0]
    if not kept.any():  # all rows are equal
        return torch.zeros(len(covariance), 1, device=covariance.device)
    projection: Tensor = vector[:, kept] * value[kept] ** (-power / 2)
    return projection.float()
