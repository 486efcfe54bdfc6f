"""Scalings against numpy."""

import numpy as np
import pytest
import torch

from temi.pipeline.features import blocks as module
from temi.pipeline.features.scaling import POWER, Moments, Scaling

N, D = 200, 12


def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 + torch.randn(N, D, generator=generator) * torch.logspace(-1, 1, D)).half()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference(kind: str, x: np.ndarray) -> np.ndarray:
    if kind in ("root", *POWER):
        x = np.sign(x) * np.sqrt(np.abs(x))
    centered = x - x.mean(0)
    if kind in POWER:
        value, vector = np.linalg.eigh(centered.T @ centered / len(x))
        return unit(centered @ vector[:, ::-1] * value[::-1] ** (-POWER[kind] / 2))
    return {"none": x, "l2": unit(x), "standardize": centered / x.std(0, ddof=1)}.get(kind, unit(centered))


@pytest.mark.parametrize("block", [7, 65_536])
@pytest.mark.parametrize("kind", ["none", "l2", "standardize", "center", "root", "whiten25", "whiten50"])
def test_scaling_equals_its_reference_in_blocks_of_any_size(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    scaled = Scaling.fit(kind, Moments(rows()))(rows()).numpy()
    expected = reference(kind, rows().double().numpy())
    if kind in POWER:  # an eigenvector's sign is free: compare what is not
        np.testing.assert_allclose(scaled @ scaled.T, expected @ expected.T, atol=1e-4)
    else:
        np.testing.assert_allclose(scaled, expected, atol=1e-4)


def test_directions_without_variance_are_dropped() -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, D)
    x[:, 3:] = 1.0
    scaling = Scaling.fit("whiten50", Moments(x))
    assert scaling.width == 3
    assert scaling(x).isfinite().all()
    same = torch.ones(10, D)
    assert Scaling.fit("whiten50", Moments(same))(same).isfinite().all()
