"""Heads as sure as clusters are to be expected right: the equation, what must hold, and clusters of known worth."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import mixture
from scipy.optimize import linear_sum_assignment

from temi.pipeline.config import load_config
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.features.features import Features
from temi.pipeline.runs.calibration import EXPONENT, SOFTNESS, calibrated, expected_accuracy
from temi.pipeline.runs.fit import fit_model
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.start.vote import agreement

SHORT = ["heads.clusters=5", "heads.count=4", "train.epochs=0", "train.min_steps=100", "train.tensorboard=false"]


@pytest.fixture(scope="module")
def trained() -> tuple[ClusterModel, torch.Tensor]:
    """A model as sure as its heads, and the scaled rows."""
    embedding, _ = mixture(rows=400, clusters=5, noise=1.5)
    features = Features.of_array(embedding.astype(np.float32))
    model = replace(fit_model(features, load_config(None, SHORT)), softness=1.0)
    return model, model.scaling(torch.from_numpy(embedding.astype(np.float32)))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), softness=st.floats(0.3, 50))
def test_softened_by_its_equation(trained: tuple[ClusterModel, torch.Tensor], seed: int, softness: float) -> None:
    p = np.random.default_rng(seed).dirichlet(np.full(6, 0.3), size=20).astype(np.float32)
    expected = p.astype(np.float64) ** (1 / softness)
    expected /= expected.sum(1, keepdims=True)
    found = replace(trained[0], softness=softness).softened(torch.from_numpy(p)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (p[np.arange(20), found.argmax(1)] == p.max(1)).all()
    hard = np.array([[0.0, 1.0, 0.0]], np.float32)  # what no head says stays impossible
    assert (trained[0].softened(torch.from_numpy(hard)).numpy() == hard).all()


@pytest.mark.parametrize("agreed", [0.7, 0.8, 0.9, 0.92])  # heads say 0.77 themselves, 0.926 to the power
def test_as_sure_in_the_mean_as_is_expected(trained: tuple[ClusterModel, torch.Tensor], agreed: float) -> None:
    model, rows = trained
    before, after = model.of_scaled, calibrated(model, rows, expected_accuracy(agreed, 5)).of_scaled
    assert after.assign(rows)[1].mean().item() == pytest.approx(agreed**EXPONENT, abs=1e-3)
    assert (after.assign(rows)[0] == before.assign(rows)[0]).all()


def test_heads_become_no_surer_and_what_is_not_known_changes_nothing(
    trained: tuple[ClusterModel, torch.Tensor],
) -> None:
    model, rows = trained
    assert calibrated(model, rows, expected_accuracy(None, 5)) is model
    assert calibrated(model, rows, expected_accuracy(1.0, 5)).softness == 1 == SOFTNESS[0]
    # Less sure than by chance cannot be.
    assert calibrated(model, rows, expected_accuracy(0.1, 5)).softness == SOFTNESS[1]


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), clusters=st.integers(2, 6))
def test_agreement_is_the_mean_over_pairs_of_the_best_match(seed: int, clusters: int) -> None:
    cuts = list(np.random.default_rng(seed).integers(clusters, size=(4, 50)))
    shares = []
    for one, other in combinations(cuts, 2):
        table = np.array([[np.sum((one == a) & (other == b)) for b in range(clusters)] for a in range(clusters)])
        shares.append(table[linear_sum_assignment(-table)].sum() / 50)
    assert agreement(cuts, clusters) == pytest.approx(np.mean(shares))
    renamed = [np.random.default_rng(seed).permutation(clusters)[cut] for cut in cuts]
    assert agreement(renamed, clusters) == pytest.approx(agreement(cuts, clusters))
    assert agreement([cuts[0]] * 3, clusters) == 1


@pytest.mark.parametrize("noise", [0.5, 3.0, 6.0])
def test_confidence_follows_what_clusters_are_worth(noise: float) -> None:
    embedding, label = mixture(rows=600, clusters=5, noise=noise)
    rows = embedding.astype(np.float32)
    model = fit_model(Features.of_array(rows), load_config(None, SHORT))
    cluster, confidence = (found.numpy() for found in model.assign(torch.from_numpy(rows)))
    right = hungarian_accuracy(label, cluster)
    assert abs(confidence.mean() - right) < 0.2
    assert expected_accuracy(1, 5) == 1
    assert expected_accuracy(0.2, 5) == 0.2  # chance
