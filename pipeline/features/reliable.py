"""Directions in which things differ more from each other than inside: what views teach, and what clusters teach."""

import torch
from jaxtyping import Float64
from torch import Tensor

DIRECTIONS = 256  # at most: reliability is small beyond
UNRELIABLE = 1e-3  # variance between things, of that inside, below which a direction is left out


def reliable_directions(
    within: Float64[Tensor, "D D"], between: Float64[Tensor, "D D"], ridge: float
) -> tuple[Float64[Tensor, "D P"], Float64[Tensor, " P"]]:
    """Eigenvectors of `between` where `within` is white, the most reliable first, and the reliability of each.

    They are the v of S_b v = b (S_w + r tr(S_w) / D I) v (Fisher 1936, Hotelling 1936), of length 1 in the matrix on
    the right. b is the variance between things, in units of that inside of one, and b / (1 + b) its reliability:
    directions scaled by it need no choice of how many to keep. P is 0 where no b exceeds UNRELIABLE.

    Parameters
    ----------
    within : S_w, covariance inside of things
    between : S_b, of what they are in the mean
    ridge : r
    """
    value, vector = torch.linalg.eigh(within)
    number = torch.finfo(value.dtype)
    inside = torch.maximum(value.mean(), number.eps * between.diagonal().mean())  # where things are of one row each
    floor = ridge * inside.clamp_min(number.tiny)
    whiten = vector / (value.clamp_min(0) + floor).sqrt()
    value, vector = torch.linalg.eigh(whiten.mT @ between @ whiten)
    kept = (value > UNRELIABLE).nonzero()[:, 0].flip(0)[:DIRECTIONS]
    return whiten @ vector[:, kept], value[kept] / (1 + value[kept])
