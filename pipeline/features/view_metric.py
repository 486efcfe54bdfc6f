"""A metric learned from the views of images: directions in which the views of one image differ count little.

With S_w the covariance within images and S_b the one between, the directions are the eigenvectors of S_b in the space
whitened by (S_w + ridge)^-1/2: canonical correlation of views (Hotelling 1936), the closed-form optimum of linear
self-supervised learning (Balestriero and LeCun, NeurIPS 2022). No label is read.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from temi.pipeline.features.reliable import reliable_directions
from temi.pipeline.products import product

RIDGE = 0.3  # of the mean variance within images; one chosen by retrieval of a left-out view did no better


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
    between = between / count - torch.outer(center, center) - within / seen
    directions, reliability = reliable_directions(within, between, ridge)
    weighed: Tensor = directions * reliability
    return weighed if len(reliability) else torch.zeros_like(within[:, :1])  # views differ as much as images do
