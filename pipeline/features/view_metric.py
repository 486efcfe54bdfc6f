"""A metric learned from the views of images: directions in which the views of one image differ count little.

With S_w the covariance within images and S_b the one between, the directions are the eigenvectors of S_b in the space
whitened by (S_w + ridge)^-1/2: canonical correlation of views (Hotelling 1936), the closed-form optimum of linear
self-supervised learning (Balestriero and LeCun, NeurIPS 2022). Each is weighed by its reliability b / (1 + b), b its
variance between images where that within is 1, so that no number of directions has to be chosen. No label is read.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from temi.pipeline.products import product

RIDGE = 0.3  # of the mean variance within images; chosen by retrieval of a left-out view it is no better
DIRECTIONS = 256  # reliability is small beyond
UNRELIABLE = 1e-3  # variance between images below which a direction is left out


def view_directions(images: Iterable[Float[Tensor, "n V1 D"]], ridge: float = RIDGE) -> Float64[Tensor, "D P"]:
    """Directions of the metric, each times its reliability.

    Parameters
    ----------
    images : blocks of images, each with its own embedding and those of its views
    ridge : added to S_w, as a share of the mean variance within images
    """
    count, seen = 0, 1
    total = between = within = torch.zeros((), dtype=torch.float64)
    for block in images:
        mean = block.mean(1)
        apart = (block - mean[:, None]).flatten(0, 1)
        count, seen = count + len(block), block.shape[1]
        total = total + mean.double().sum(0)
        between = between + product(mean.mT, mean).double()
        within = within + product(apart.mT, apart).double()
    center = total / count
    within = within / (count * (seen - 1))
    return _directions(within, between / count - torch.outer(center, center) - within / seen, ridge)


def _directions(
    within: Float64[Tensor, "D D"], between: Float64[Tensor, "D D"], ridge: float
) -> Float64[Tensor, "D P"]:
    """Eigenvectors of `between` where `within` is white, times their reliability."""
    value, vector = torch.linalg.eigh(within)
    floor = ridge * value.mean().clamp_min(torch.finfo(value.dtype).tiny)
    whiten = vector / (value.clamp_min(0) + floor).sqrt()
    value, vector = torch.linalg.eigh(whiten.mT @ between @ whiten)
    kept = (value > UNRELIABLE).nonzero()[:, 0].flip(0)[:DIRECTIONS]
    if not len(kept):  # views differ as much as images do
        return torch.zeros_like(whiten[:, :1])
    reliability = value[kept] / (1 + value[kept])
    directions: Tensor = (whiten @ vector[:, kept]) * reliability
    return directions
