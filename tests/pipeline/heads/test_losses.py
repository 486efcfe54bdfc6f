"""Every objective against ten lines of numpy, its gradient against autograd, and the facts of the paper's objective."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from temi.pipeline.heads import losses

G, B, C = 3, 7, 5


def draw(seed: int = 0, spread: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student logits, teacher log-probabilities, log marginal, all float64, and beta per head."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(G, 2 * B, C, generator=generator, dtype=torch.float64)
    teacher = (spread * torch.randn(G, 2 * B, C, generator=generator, dtype=torch.float64)).log_softmax(-1)
    marginal = torch.rand(G, C, generator=generator, dtype=torch.float64) + 0.1
    return logits, teacher, (marginal / marginal.sum(-1, keepdim=True)).log(), torch.tensor([0.5, 0.6, 1.0]).double()


def numpy_softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_temi(z: np.ndarray, teacher: np.ndarray, p: np.ndarray, beta: float, weight: np.ndarray) -> float:
    """One head, as the paper writes it: partners are the other half of the batch."""
    q = numpy_softmax(z)
    half = len(z) // 2
    total = 0.0
    for i in range(len(z)):
        partner = (i + half) % len(z)
        total -= weight[i] * np.log(sum((q[i, c] * teacher[partner, c]) ** beta / p[c] for c in range(len(p))))
    return total / len(z)


def test_temi_equals_the_sum_over_clusters_that_the_paper_writes() -> None:
    logits, teacher, log_marginal, beta = draw()
    weight = losses.pair_weight(losses.overlap(teacher.exp()), heads=3)
    loss, _ = losses.temi(logits.clone(), teacher, log_marginal, beta, weight)
    for head in range(G):
        expected = numpy_temi(
            logits[head].numpy(),
            teacher[head].exp().numpy(),
            log_marginal[head].exp().numpy(),
            float(beta[head]),
            weight[head].numpy(),
        )
        assert loss[head].item() == pytest.approx(expected, rel=1e-12)


def test_temi_gradient_is_beta_times_q_minus_r() -> None:
    logits, teacher, log_marginal, beta = draw()
    partner = losses.swap_partners(teacher)
    weight = losses.pair_weight(losses.overlap(teacher.exp()), heads=1)
    student = (logits / 0.1).log_softmax(-1)
    _, found = losses.temi(logits / 0.1, teacher, log_marginal, beta, weight)
    r = (beta[:, None, None] * (student + partner) - log_marginal[:, None]).softmax(-1)
    closed = beta[:, None, None] * (student.exp() - r) * weight[..., None] / (2 * B)
    torch.testing.assert_close(found, closed, rtol=1e-12, atol=1e-15)


def test_softmax_equals_torch_in_rows_and_in_columns() -> None:
    logits, *_ = draw(7)
    for rows in (logits, logits.transpose(0, 1).contiguous().transpose(0, 1), logits * 1e4):
        for scores in (rows, rows.mT.contiguous().mT):
            probability, log_sum = losses.softmax(scores)
            torch.testing.assert_close(log_sum, scores.logsumexp(-1))
            torch.testing.assert_close(probability, scores.softmax(-1))


def numpy_beta_mi(z: np.ndarray, teacher: np.ndarray, p: np.ndarray, beta: float) -> float:
    joint = numpy_softmax(z) * np.roll(teacher, len(z) // 2, axis=0)
    pmi = np.minimum(np.log(joint / p), 100)
    return float(-((joint / p) ** beta * p * pmi).sum(-1).mean())


def numpy_scan(z: np.ndarray, teacher: np.ndarray, alpha: float) -> float:
    q = numpy_softmax(z)
    mean = q.mean(0)
    match = (q * np.roll(teacher, len(z) // 2, axis=0)).sum(-1)
    return float(-np.log(match).mean() + alpha * (mean * np.log(mean)).sum())


def test_beta_mi_and_scan_equal_their_references() -> None:
    logits, teacher, log_marginal, beta = draw(3)
    partner, student = losses.swap_partners(teacher), logits.log_softmax(-1)
    mi, _ = losses.beta_mi(student, partner, log_marginal, beta)
    scan, _ = losses.scan(student, partner, torch.full((G,), 5.0, dtype=torch.float64))
    for h in range(G):
        z, q, p = logits[h].numpy(), teacher[h].exp().numpy(), log_marginal[h].exp().numpy()
        assert mi[h].item() == pytest.approx(numpy_beta_mi(z, q, p, float(beta[h])), rel=1e-12)
        assert scan[h].item() == pytest.approx(numpy_scan(z, q, 5.0), rel=1e-12)


def test_regularizers_equal_their_references() -> None:
    logits, *_ = draw(4)
    weight = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    batch, _ = losses.batch_entropy(logits.log_softmax(-1), weight)
    sample, _ = losses.sample_entropy(logits.log_softmax(-1), weight)
    for h in range(G):
        q = numpy_softmax(logits[h].numpy())
        mean = q.mean(0)
        assert batch[h].item() == pytest.approx(float(weight[h]) * (mean * np.log(mean)).sum(), abs=1e-12)
        assert sample[h].item() == pytest.approx(-float(weight[h]) * (q * np.log(q)).sum(-1).mean(), abs=1e-12)


def temi_by_definition(name: str, student: Tensor, teacher: Tensor, log_marginal: Tensor, beta: Tensor) -> Tensor:
    """Loss per head, for autograd."""
    heads = {"temi": 3, "wmi": 1}.get(name)
    weight = losses.pair_weight(losses.overlap(teacher.exp()), heads) if heads else 1.0
    agreement = beta[:, None, None] * (student + losses.swap_partners(teacher)) - log_marginal[:, None]
    return -(weight * agreement.logsumexp(-1)).mean(-1)


@pytest.mark.parametrize("name", ["temi", "pmi", "wmi"])
@given(seed=st.integers(0, 2**31), spread=st.floats(0.1, 5.0))
@settings(max_examples=10, deadline=None)
def test_temi_gradient_equals_autograd(name: str, seed: int, spread: float) -> None:
    logits, teacher, log_marginal, beta = draw(seed, spread)
    leaf = (logits / 0.1).requires_grad_()
    expected_loss = temi_by_definition(name, leaf.log_softmax(-1), teacher, log_marginal, beta)
    (expected,) = torch.autograd.grad(expected_loss.sum(), leaf)
    heads = {"temi": 3, "wmi": 1}.get(name)
    weight = losses.pair_weight(losses.overlap(teacher.exp()), heads) if heads else torch.ones_like(logits[..., 0])
    loss, found = losses.temi(logits / 0.1, teacher, log_marginal, beta, weight)
    torch.testing.assert_close(loss, expected_loss.detach())
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


OBJECTIVES = {
    "scan": lambda s, t, m, b: losses.scan(s, t, torch.full((G,), 5.0, dtype=torch.float64)),
    "beta-mi": losses.beta_mi,
    "batch-entropy": lambda s, t, m, b: losses.batch_entropy(s, b),
    "sample-entropy": lambda s, t, m, b: losses.sample_entropy(s, b),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 2**31), spread=st.floats(0.1, 5.0))
@settings(max_examples=10, deadline=None)
def test_gradient_through_the_softmax_equals_autograd(name: str, seed: int, spread: float) -> None:
    logits, teacher, log_marginal, beta = draw(seed, spread)
    leaf = (logits / 0.5).requires_grad_()
    student = leaf.log_softmax(-1)
    loss, gradient = OBJECTIVES[name](student, teacher, log_marginal, beta)
    (expected,) = torch.autograd.grad(loss.sum(), leaf)
    found = losses.logit_gradient(gradient.detach(), student.detach())
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


def test_extreme_logits_give_finite_gradients_where_the_probability_form_gives_nan() -> None:
    logits = torch.zeros(1, 2, 3)
    logits[..., 0] = 500.0  # at temperature 0.1 the other probabilities underflow
    teacher = logits.flip(-1)
    beta, weight = torch.tensor([0.6]), torch.ones(1, 2)
    loss, gradient = losses.temi(logits / 0.1, (teacher / 0.1).log_softmax(-1), torch.zeros(1, 3), beta, weight)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()

    leaf = logits.clone().requires_grad_()
    joint = (leaf / 0.1).softmax(-1) * (teacher / 0.1).softmax(-1)
    (naive,) = torch.autograd.grad(-joint.pow(0.6).sum(-1).log().sum(), leaf)
    assert naive.isnan().any()


@given(st.integers(1, 40), st.floats(0.3, 1.0))
@settings(deadline=None)
def test_loss_of_uniform_heads_is_minus_one_over_c_times_two_minus_two_beta_log_c(clusters: int, beta: float) -> None:
    uniform = torch.full((1, 4, clusters), 1 / clusters, dtype=torch.float64)
    weight = losses.pair_weight(losses.overlap(uniform), heads=1)
    loss, _ = losses.temi(
        uniform.log(), uniform.log(), uniform[:, 0].log(), torch.tensor([beta], dtype=torch.float64), weight
    )
    assert loss.item() == pytest.approx(-(2 - 2 * beta) * np.log(clusters) / clusters, abs=1e-9)


def test_loss_of_agreeing_balanced_one_hot_rows_is_minus_mean_weight_log_c() -> None:
    one_hot = torch.eye(C, dtype=torch.float64).mul(60).log_softmax(-1)[None]
    rows = torch.cat([one_hot, one_hot], dim=1)
    weight = losses.pair_weight(losses.overlap(rows.exp()), heads=1)
    loss, _ = losses.temi(
        rows.clone(), rows, torch.full((1, C), 1 / C).double().log(), torch.tensor([0.6], dtype=torch.float64), weight
    )
    assert loss.item() == pytest.approx(-float(weight.mean()) * np.log(C), rel=1e-6)


def test_entropy_term_charges_a_perfectly_balanced_batch_alpha_c_minus_one_over_two_n() -> None:
    # The reason why batch entropy freezes TEMI: sampling noise alone costs alpha (C - 1) / (2 n).
    clusters, rows, alpha = 100, 1000, 5.0
    draws = torch.randint(clusters, (200, rows), generator=torch.Generator().manual_seed(0))
    student = torch.nn.functional.one_hot(draws, clusters).double().mul(60).log_softmax(-1)
    cost, _ = losses.batch_entropy(student, torch.full((200,), alpha, dtype=torch.float64))
    excess = cost.mean() + alpha * np.log(clusters)
    assert excess.item() == pytest.approx(alpha * (clusters - 1) / (2 * rows), rel=0.1)


def test_pair_weight_is_shared_by_the_heads_of_a_trial_and_by_both_directions() -> None:
    _, teacher, *_ = draw()
    q = teacher.exp()
    weight = losses.pair_weight(losses.overlap(q), heads=3)
    by_hand = np.mean([(q[h, :B] * q[h, B:]).sum(-1).numpy() for h in range(G)], axis=0)
    for half in (weight[:, :B], weight[:, B:]):
        np.testing.assert_allclose(half.numpy(), np.tile(by_hand, (G, 1)))


def test_marginal_is_an_ema_of_the_batch_mean() -> None:
    _, teacher, log_marginal, _ = draw()
    momentum = torch.tensor([0.0, 0.9, 1.0], dtype=torch.float64)
    updated = losses.update_marginal(log_marginal.exp(), teacher.exp(), momentum)
    for h, keep in enumerate(momentum.tolist()):
        expected = keep * log_marginal[h].exp().numpy() + (1 - keep) * teacher[h].exp().numpy().mean(0)
        np.testing.assert_allclose(updated[h].numpy(), expected)
    assert updated.sum(-1).numpy() == pytest.approx(np.ones(G))


def test_told_pairs_equal_their_reference_and_autograd() -> None:
    logits = draw()[0].requires_grad_()
    joined = torch.tensor([True, False, True, False, False, True, True])
    loss, gradient = losses.told_pairs(logits.detach().log_softmax(-1), joined)
    q = numpy_softmax(logits.detach().numpy())
    same = (q[:, :B] * q[:, B:]).sum(-1)
    expected = np.where(joined.numpy(), -np.log(same), -np.log(1 - same)).mean(-1)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)
    student = logits.log_softmax(-1)
    shared = (student[:, :B] + student[:, B:]).logsumexp(-1).exp()
    torch.where(joined, -shared.log(), -(1 - shared).log()).mean(-1).sum().backward()
    carried = losses.logit_gradient(gradient, student.detach())
    torch.testing.assert_close(carried, logits.grad, rtol=1e-9, atol=1e-12)


def test_told_pairs_stay_finite_where_heads_are_sure_of_the_opposite() -> None:
    sure = torch.tensor([[[200.0, 0.0], [200.0, 0.0], [200.0, 0.0], [0.0, 200.0]]])
    loss, gradient = losses.told_pairs(sure.log_softmax(-1), torch.tensor([False, True]))
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
