"""Low-dimensional layouts of a neighbor graph, in which clusters come apart and k-means finds them.

Source: McInnes, Healy, Melville, "UMAP: Uniform Manifold Approximation and Projection", arXiv 1802.03426; the same
fuzzy graph and gradient, with all edges of a part of an epoch moved at once, so that an epoch is a few tensor
operations and runs on any device.
"""

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

CURVE = (1.577, 0.895)  # a, b of 1 / (1 + a d^(2b)), UMAP's fit for min_dist 0.1 and spread 1
NEGATIVES = 5  # rows repelled per end of an edge
PARTS = 4  # updates per epoch
LARGEST_MOVE = 4.0  # of one coordinate by one edge
BISECTIONS = 48
DIMENSIONS = 3
COMPONENTS = 4  # principal components that a start is made of


def fuzzy_graph(neighbor: Int32[np.ndarray, "N K"], distance: Float32[np.ndarray, "N K"]) -> sp.csr_array:
    """UMAP's fuzzy union of the neighbor lists (algorithms 2 and 3), a symmetric (N, N) matrix with entries in (0, 1].

    w_ij = exp(-(d_ij - rho_i) / sigma_i) with rho_i the nearest distance and sigma_i such that row i sums to
    log2(K + 1); then w + w^T - w w^T.
    """
    rows, k = distance.shape
    excess = np.maximum(distance - distance[:, :1], 0).astype(np.float64)
    low, high, sigma = np.zeros((rows, 1)), np.full((rows, 1), np.inf), np.ones((rows, 1))
    for _ in range(BISECTIONS):
        above = np.exp(-excess / sigma).sum(1, keepdims=True) > np.log2(k + 1)
        high, low = np.where(above, sigma, high), np.where(above, low, sigma)
        sigma = np.where(np.isinf(high), 2 * sigma, (low + high) / 2)
    floor = 1e-3 * max(float(distance.mean()), 1e-12)  # a row of equal distances has no scale of its own
    weight = np.exp(-excess / np.maximum(sigma, floor))
    ends = (np.repeat(np.arange(rows), k), neighbor.ravel())
    one_way = sp.csr_array((weight.ravel(), ends), shape=(rows, rows))
    return sp.csr_array(one_way + one_way.T - one_way.multiply(one_way.T))


def principal_start(x: Float[Tensor, "N D"], seed: int) -> Float32[np.ndarray, "N 3"]:
    """The four leading principal components of `x`, turned at random into three dimensions.

    Starts that differ and still know the data; spectral starts fail on graphs of many components.
    """
    centered = x - x.mean(0)
    basis = torch.linalg.eigh((centered.mT @ centered).double())[1][:, -COMPONENTS:].float()
    turn = np.random.default_rng(seed).normal(size=(basis.shape[1], DIMENSIONS)).astype(np.float32)
    start: Float32[np.ndarray, "N 3"] = (centered @ basis).cpu().numpy() @ turn
    return start


def layout(
    graph: sp.csr_array, start: Float32[np.ndarray, "N 3"], epochs: int, seed: int, device: torch.device
) -> Float32[np.ndarray, "N 3"]:
    """Move rows so that edges of the graph become short and other pairs long: UMAP's stochastic gradient.

    An edge of weight w takes part in an epoch with probability w / max w; the step falls linearly to zero.
    """
    generator = torch.Generator(device).manual_seed(seed)
    edges = sp.coo_array(sp.triu(graph, 1))
    share = torch.from_numpy((edges.data / edges.data.max()).astype(np.float32)).to(device)
    ends = torch.from_numpy(np.stack([edges.row, edges.col]).astype(np.int64)).to(device)
    y = torch.from_numpy(start).to(device)
    y = 10 * y / y.abs().max().clamp_min(1e-12)
    y += 1e-2 * torch.randn(y.shape, generator=generator, device=device)
    for epoch in range(epochs):
        chosen = ends[:, torch.rand(len(share), generator=generator, device=device) < share]
        order = torch.randperm(chosen.shape[1], generator=generator, device=device)
        for part in order.chunk(PARTS):
            y += (1 - epoch / epochs) * _moves(y, chosen[:, part], generator)
    return y.cpu().numpy()


def _moves(y: Tensor, ends: Tensor, generator: torch.Generator) -> Tensor:
    """Summed moves of all rows: attraction along the edges, repulsion of both their ends from random rows."""
    a, b = CURVE
    i, j = ends
    gap = y[i] - y[j]
    square = (gap * gap).sum(1, keepdim=True).clamp_min(1e-12)
    pull = (-2 * a * b * square.pow(b - 1) / (1 + a * square.pow(b)) * gap).clamp_(-LARGEST_MOVE, LARGEST_MOVE)
    moves = torch.zeros_like(y).index_add_(0, i, pull).index_add_(0, j, -pull)
    head = torch.cat([i, j])
    others = torch.randint(len(y), (len(head), NEGATIVES), generator=generator, device=y.device)
    gap = y[head][:, None] - y[others]
    square = (gap * gap).sum(2, keepdim=True)
    push = 2 * b / ((1e-3 + square) * (1 + a * square.pow(b))) * gap
    return moves.index_add_(0, head, push.clamp_(-LARGEST_MOVE, LARGEST_MOVE).sum(1))
