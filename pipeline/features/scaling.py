"""How embeddings are scaled before neighbors are searched and heads are trained.

===========  ===================================================================================================
none         as they are
l2           unit norm
standardize  per coordinate: mean 0, deviation 1
center       minus the mean of the training rows, then unit norm
root         signed square root, then `center`
whiten25     signed square root, 128 principal components divided by the 4th root of their deviation, unit norm
whiten50     the same, divided by the square root of their deviation
views        signed square root, then the metric that the views of the images teach (view_metric.py), unit norm
joined       256 components of `root`, `whiten50` and, where there are views, `views`, side by side
===========  ===================================================================================================

The signed square root is power normalization (Perronnin, Sánchez, Mensink, ECCV 2010): it tames the few channels of a
frozen encoder that are much larger than the rest. Dividing a component of variance w by w^(p/2), p = 0.25 or 0.5, is
softer than whitening (p = 1), which would blow up the noise of the last components. Of rows that are joined, the cosine
is the mean of the cosines of their parts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from scipy.linalg import eigh
from torch import Tensor

from temi.pipeline.errors import UserError
from temi.pipeline.features.blocks import Embeddings, blocks_of, enumerate_blocks
from temi.pipeline.features.kinds import Kind
from temi.pipeline.features.reliable import DIRECTIONS
from temi.pipeline.features.view_metric import view_directions
from temi.pipeline.products import product

POWER = {"whiten25": 0.25, "whiten50": 0.5}
ROOTED = ("root", "views", "joined", *POWER)
COMPONENTS = 128  # of what is whitened
ROOT_COMPONENTS = 256  # of the rooted part of `joined`
PAIRED_ROWS = 4096  # images whose views are in memory at a time
BLOCK_COPIES = 24  # bytes per value while a block is scaled: float16 read and chosen, five float32 copies
WHITENING_COPIES = 6  # covariance and eigenvectors, float64
FLAT = 1e-7  # of the largest variance: below it a component is rounding


def scaled_width(kind: Kind, dim: int, viewed: bool) -> int:
    """Width, at most, of rows of `dim` that have augmented views or not, once they are scaled."""
    seen = min(dim, DIRECTIONS) if viewed else 0
    if kind == "joined":
        return min(dim, ROOT_COMPONENTS) + min(dim, COMPONENTS) + seen
    return min(dim, COMPONENTS) if kind in POWER else seen if kind == "views" else dim


def block_bytes(rows: int, dim: int) -> int:
    """Memory of a block of so many rows while it is scaled."""
    return rows * dim * BLOCK_COPIES


def fitting_bytes(kinds: Iterable[Kind], dim: int) -> int:
    """Memory that fitting these maps takes, whatever the number of rows."""
    spectral = {"joined", "views", *POWER} & set(kinds)
    return WHITENING_COPIES * dim * dim * torch.float64.itemsize if spectral else 0


@dataclass(frozen=True)
class Scaling:
    """A fitted map of embeddings: x -> (f(x) - shift) weight, cut into segments of unit norm.

    Attributes
    ----------
    root : whether f is the signed square root rather than the identity
    shift : (D,)
    weight : (D,) factors, or a (D, P) projection
    segments : widths of the parts that are brought to norm 1, together P; empty: none is
    """

    root: bool
    shift: Float[Tensor, " D"]
    weight: Float[Tensor, "..."]
    segments: tuple[int, ...]

    @classmethod
    def fit(cls, kind: Kind, rows: "Moments") -> "Scaling":
        """The map of `kind` for the rows that `rows` describes; its views are read only by the last two kinds.

        Raises
        ------
        UserError
            `kind` is ``views`` and there are none.
        """
        if kind == "views" and rows.views is None:
            raise UserError("the scaling `views` needs augmented views; embed with --set embed.views=2")
        root, width = kind in ROOTED, int(rows.embedding.shape[-1])
        plain = cls.identity(width, rows.embedding.device)
        if kind in ("none", "l2"):
            return replace(plain, segments=(width,) if kind == "l2" else ())
        mean, one = rows.mean(root), plain.weight
        if kind in ("center", "root"):
            return cls(root, mean, one, (width,))
        if kind == "standardize":
            return cls(root, mean, 1 / rows.variance().sqrt().float().clamp_min(1e-6), ())
        parts: list[Tensor] = []
        if kind == "joined":
            parts.append(soft_whitening(*rows.spectrum, ROOT_COMPONENTS, 0))
        if kind != "views":
            parts.append(soft_whitening(*rows.spectrum, COMPONENTS, POWER.get(kind, POWER["whiten50"])))
        if rows.views is not None and kind in ("views", "joined"):
            parts.append(rows.viewed)
        return cls(root, mean, torch.cat(parts, 1), tuple(part.shape[1] for part in parts))

    @classmethod
    def identity(cls, width: int, device: torch.device) -> "Scaling":
        """The map of rows that are scaled already."""
        return cls(False, torch.zeros(width, device=device), torch.ones(width, device=device), ())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` reads."""
        plain = {"root": np.array([self.root]), "segments": np.array(self.segments, np.int64)}
        return {"shift": self.shift.numpy(force=True), "weight": self.weight.numpy(force=True), **plain}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> "Scaling":
        """The map that `to_arrays` took apart, on `device`."""
        shift, weight = (torch.from_numpy(arrays[name]).to(device) for name in ("shift", "weight"))
        return cls(bool(arrays["root"][0]), shift, weight, tuple(arrays["segments"].tolist()))

    @property
    def width(self) -> int:
        """P, the width of a scaled row."""
        return self.weight.shape[-1]

    def __call__(self, embedding: Embeddings, out: Tensor | None = None) -> Tensor:
        """Scaled float32 rows, (..., D) -> (..., P), into `out` where it is given."""
        shape = (*embedding.shape[:-1], self.width)
        scaled = torch.empty(shape, device=embedding.device) if out is None else out
        for first, block in enumerate_blocks(embedding):
            scaled[first : first + len(block)] = self.of_block(block)
        return scaled

    def of_block(self, embedding: Tensor) -> Tensor:
        """The same in one piece."""
        return self.of_rooted(_rooted(embedding, self.root))

    def of_rooted(self, x: Tensor) -> Tensor:
        """The rest of the map for float32 rows f(x)."""
        x = x - self.shift
        x = x * self.weight if self.weight.ndim == 1 else product(x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)
        if not self.segments:
            return x
        parts = [F.normalize(part, dim=-1) for part in torch.split(x, list(self.segments), dim=-1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1) * len(parts) ** -0.5


class Moments:
    """What the scalings of the same rows are fitted from; what several of them need is computed once.

    Parameters
    ----------
    embedding : (N, D)
    views : (N, V, D), if there are any
    """

    def __init__(self, embedding: Embeddings, views: Embeddings | None = None) -> None:
        self.embedding, self.views = embedding, views
        self._means: dict[bool, Float[Tensor, " D"]] = {}

    def mean(self, root: bool) -> Float[Tensor, " D"]:
        """Of the rows, or of their signed roots."""
        if root not in self._means:
            summed = total(x.sum(0) for x in _blocks(self.embedding, root))
            self._means[root] = (summed / len(self.embedding)).float()
        return self._means[root]

    def variance(self) -> Float64[Tensor, " D"]:
        """Of every coordinate of the rows."""
        centered = (x - self.mean(False) for x in _blocks(self.embedding, False))
        return total(x.square().sum(0) for x in centered) / max(len(self.embedding) - 1, 1)

    @cached_property
    def spectrum(self) -> tuple[Float64[Tensor, " R"], Float64[Tensor, "D R"]]:
        """Largest variances of the signed roots, falling, and their directions."""
        centered = (x - self.mean(True) for x in _blocks(self.embedding, True))
        return _spectrum(total(product(x.mT, x) for x in centered) / len(self.embedding))

    @cached_property
    def viewed(self) -> Float[Tensor, "D P"]:
        """Directions of the metric that the views teach (view_metric.py)."""
        assert self.views is not None
        return view_directions(_paired(self.embedding, self.views)).float()


def _blocks(embedding: Embeddings, root: bool) -> Iterator[Tensor]:
    """float32 rows of `embedding`, or their signed roots, block by block."""
    return (_rooted(block, root) for block in blocks_of(embedding))


def _paired(embedding: Embeddings, views: Embeddings) -> Iterator[Float[Tensor, "n V1 D"]]:
    """Signed roots of images with their views behind them, block by block."""
    for own, seen in zip(blocks_of(embedding, PAIRED_ROWS), blocks_of(views, PAIRED_ROWS), strict=True):
        yield torch.cat([_rooted(own, True)[:, None], _rooted(seen, True)], 1)


def _rooted(block: Tensor, root: bool) -> Tensor:
    return signed_root(block.float()) if root else block.float()


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, in float64: float32 would lose the last of millions of rows."""
    found = 0.0 + sum(part.double() for part in parts)
    assert isinstance(found, Tensor)
    return found


def signed_root(x: Tensor) -> Tensor:
    """sign(x) sqrt(|x|)."""
    return x.abs().sqrt_().copysign_(x)


def _spectrum(covariance: Float64[Tensor, "D D"]) -> tuple[Float64[Tensor, " R"], Float64[Tensor, "D R"]]:
    """The ROOT_COMPONENTS largest variances above rounding, falling, and their directions; torch would find every one.

    In float64: components of small variance are differences of large numbers. The largest entry of a direction is
    positive: else the last bits of a product would choose its sign.
    """
    last = len(covariance) - 1
    found, turned = eigh(covariance.numpy(force=True), subset_by_index=[max(0, last + 1 - ROOT_COMPONENTS), last])
    turned *= np.sign(turned[np.abs(turned).argmax(0), np.arange(len(found))])
    value, vector = (torch.from_numpy(part).to(covariance.device) for part in (found, turned))
    kept = value > FLAT * value[-1].clamp_min(0)
    return value[kept].flip(0), vector[:, kept].flip(1)


def soft_whitening(
    variance: Float64[Tensor, " R"], direction: Float64[Tensor, "D R"], count: int, power: float
) -> Float[Tensor, "D P"]:
    """The `count` leading directions, each divided by its variance^(power / 2); a zero one where all rows are equal."""
    if not len(variance):
        return direction.new_zeros(len(direction), 1).float()
    return (direction[:, :count] * variance[:count] ** (-power / 2)).float()
