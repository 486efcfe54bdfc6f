"""Synthetic mixtures whose classes are like those in features: in groups, bent, of differing width, warped together."""

import numpy as np

LATENT_WIDTH = 256  # of the warp's hidden layer
WIDEST_CLASS = 5  # directions that a class extends in, at most four
BEND = 0.35

# name -> classes, sizes, latent dimensions, spread of the class means, noise, seed
MIXTURES = {
    "balanced": (50, np.full(50, 200), 16, 1.5, 1.2, 1),
    "imbalanced": (50, None, 16, 1.5, 1.2, 2),
    "thousand": (1000, np.full(1000, 20), 24, 1.0, 0.4, 3),
}


def make_mixture(name: str, dim: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) float32 in random order and the class of each row (N,)."""
    classes, sizes, latent, spread, noise, seed = MIXTURES[name]
    sizes = geometric_sizes(10_000, classes, 50) if sizes is None else sizes
    random = np.random.default_rng(seed)
    group = random.normal(size=(max(2, classes // 5), latent)) * spread
    mean = group[random.integers(len(group), size=classes)] + random.normal(size=(classes, latent)) * spread * 0.7
    rows = np.concatenate([mean[c] + _class(int(size), latent, noise, random) for c, size in enumerate(sizes)])
    label = np.repeat(np.arange(classes), sizes)
    order = random.permutation(len(rows))
    return _warp(rows, dim, random)[order].astype(np.float32), label[order]


def geometric_sizes(rows: int, classes: int, ratio: float) -> np.ndarray:
    """About `rows` in all, the largest class `ratio` times the smallest."""
    share = ratio ** (-np.arange(classes) / (classes - 1))
    return np.maximum((share / share.sum() * rows).round().astype(int), 4)


def _class(size: int, latent: int, noise: float, random: np.random.Generator) -> np.ndarray:
    """A bent ellipsoid of two to four directions around zero, with a little noise in all others."""
    directions = int(random.integers(2, WIDEST_CLASS))
    basis = random.normal(size=(directions, latent)) / np.sqrt(latent)
    place = random.normal(size=(size, directions)) * random.uniform(1.0, 3.5, size=directions)
    place[:, 1] += BEND * (place[:, 0] ** 2 - (place[:, 0] ** 2).mean())
    return place @ basis * random.uniform(0.7, 1.3) + random.normal(size=(size, latent)) * noise


def _warp(rows: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    """One random network of two layers for all classes, and noise on its outputs."""
    first = random.normal(size=(rows.shape[1], LATENT_WIDTH)) / np.sqrt(rows.shape[1])
    hidden = rows @ first + random.normal(size=LATENT_WIDTH) * 0.5
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    out = hidden @ (random.normal(size=(LATENT_WIDTH, dim)) / np.sqrt(LATENT_WIDTH))
    noise: np.ndarray = 0.08 * hidden.std() * random.normal(size=out.shape)
    return out + noise
