"""The losses behind the objectives, with closed-form gradients in log space.

Source: Adaloglou, Michels, Kalisch, Kollmann, "Exploring the Limits of Deep Image Clustering using Pretrained
Models", BMVC 2023 (arXiv 2303.17896). Every function here is pure: log-probabilities in, a loss per head and its
gradient with respect to the *student's log-probabilities* out; `logit_gradient` carries that gradient through the
softmax (`temi` does both at once, in place). No autograd graph is built through a loss, and nothing
underflows: only `told_pairs` divides, by the probability of different clusters, kept at SMALLEST_DOUBT or above.

Rows are the M = 2B images of a batch of B pairs; row i's partner is row (i + B) mod M (`swap_partners`).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LogProbs = Float[Tensor, "G M C"]
PerHead = Float[Tensor, " G"]
PerRow = Float[Tensor, "G M"]
Scored = tuple[PerHead, LogProbs]
Average = Callable[[Tensor], Tensor]

# The smallest normal float32: below it a marginal's logarithm would be -inf and a dead cluster's pull infinite.
TINY = torch.finfo(torch.float32).tiny
MAX_PMI = 100.0
SMALLEST_DOUBT = 1e-6  # that two images are in different clusters: float32 knows no less beside 1


def alone(tensor: Tensor) -> Tensor:
    """The mean over the processes where there is one."""
    return tensor


def swap_partners(rows: Float[Tensor, "G M C"]) -> Float[Tensor, "G M C"]:
    """Row i of the result is the partner of row i: both halves of the batch change places."""
    anchors, partners = rows.chunk(2, dim=1)
    return torch.cat([partners, anchors], dim=1)


def softmax(scores: Float[Tensor, "G M C"]) -> tuple[LogProbs, PerRow]:
    """Probabilities (not logarithms) and the logsumexp of `scores`.

    Where rows are contiguous torch's kernel is the fastest; else the steps are, which then run along many rows at once.
    """
    top = scores.amax(-1, keepdim=True)
    if scores.stride(-1) == 1:
        probability = scores.softmax(-1)
        log_sum = top - probability.amax(-1, keepdim=True).log_()  # the largest is exp(0) / total: it never underflows
    else:
        probability = (scores - top).exp_()
        total = probability.sum(-1, keepdim=True)
        probability.mul_(total.reciprocal())
        log_sum = total.log_().add_(top)
    return probability, log_sum.squeeze(-1)


def overlap(teacher: LogProbs) -> Float[Tensor, "G B"]:
    """sum_c q_t(c|x) q_t(c|x') of each pair; `teacher` holds probabilities (not logarithms)."""
    anchors, partners = teacher.chunk(2, dim=1)
    return (anchors * partners).sum(-1)


def pair_weight(overlaps: Float[Tensor, "G B"], heads: int) -> PerRow:
    """w(x, x') = (1/H) sum_h sum_c q_t^h(c|x) q_t^h(c|x'): one weight per pair, shared by the heads of a trial.

    Parameters
    ----------
    overlaps : of every head, G = T * heads
    heads : heads per trial, H; 1 gives every head its own weight (wmi)
    """
    shared = overlaps.view(-1, heads, overlaps.shape[1]).mean(1, keepdim=True).expand(-1, heads, -1).flatten(0, 1)
    return torch.cat([shared, shared], dim=1)


def update_marginal(marginal: Float[Tensor, "G C"], teacher: LogProbs, momentum: PerHead) -> Float[Tensor, "G C"]:
    """p <- m p + (1 - m) mean over the batch's M rows of q_t."""
    keep = momentum[:, None]
    return keep * marginal + (1 - keep) * teacher.mean(1)


def temi(
    scores: Float[Tensor, "G M C"], teacher: LogProbs, log_prior: Float[Tensor, "G C"], beta: PerHead, weight: PerRow
) -> Scored:
    """Mean over rows of -w log sum_c (q_s q_t)^beta / p_c^rho  (the paper's equation 6 where rho is 1).

    The one objective whose gradient is taken at the logits: there it is the difference of two softmaxes.

    Parameters
    ----------
    scores : the student's z_s / tau
    teacher : log q_t of each row (not of its partner)
    log_prior : rho log p, p the EMA of the teacher's batch mean and rho ``objective.marginal_power``
    beta : exponent per head
    weight : w per row; ones give the paper's unweighted pmi

    Returns
    -------
    loss per head, and its gradient with respect to `scores`: beta w (q_s - r) / M with
    r = softmax_c(beta (log q_s + log q_t) - rho log p).
    """
    exponent, agreement = beta[:, None], torch.empty_like(scores)
    for own, other in zip(agreement.chunk(2, dim=1), swapped_halves(scores, teacher), strict=True):
        torch.add(*other, out=own)
    torch.addcmul(-log_prior[:, None], agreement, exponent[..., None], out=agreement)
    shared, log_shared = softmax(agreement)
    gradient, log_own = softmax(scores)
    loss = -(weight * log_shared.addcmul_(exponent, log_own, value=-1)).mean(-1)
    scale = exponent * weight / weight.shape[1]
    return loss, gradient.sub_(shared).mul_(scale[..., None])


def swapped_halves(rows: LogProbs, others: LogProbs) -> list[tuple[Tensor, Tensor]]:
    """Both halves of `rows`, each beside the half of `others` that holds its partners."""
    return list(zip(rows.chunk(2, dim=1), reversed(others.chunk(2, dim=1)), strict=True))


def scan(student: LogProbs, partner: LogProbs, entropy_weight: PerHead, average: Average = alone) -> Scored:
    """SCAN: mean of -log <q_s, q_t> + alpha sum_c pbar_c log pbar_c, pbar the student's batch mean.

    Van Gansbeke et al., "SCAN: Learning to Classify Images without Labels", ECCV 2020, equation 2.
    """
    agreement = student + partner
    log_sum = agreement.logsumexp(-1)
    loss = -log_sum.mean(-1)
    gradient = -(agreement - log_sum[..., None]).exp() / student.shape[1]
    entropy, entropy_gradient = batch_entropy(student, entropy_weight, average)
    return loss + entropy, gradient + entropy_gradient


def beta_mi(student: LogProbs, partner: LogProbs, log_marginal: Float[Tensor, "G C"], beta: PerHead) -> Scored:
    """The first system's rewritten loss, kept for comparison: mean of -sum_c p (q_s q_t / p)^beta log(q_s q_t / p).

    It collapses onto very few clusters (see the tests): use `temi`.
    """
    pmi = student + partner - log_marginal[:, None]
    mass = (beta[:, None, None] * pmi + log_marginal[:, None]).exp()
    clamped = pmi.clamp(max=MAX_PMI)
    loss = -(mass * clamped).sum(-1).mean(-1)
    slope = beta[:, None, None] * clamped + (pmi < MAX_PMI).to(pmi.dtype)
    return loss, -mass * slope / student.shape[1]


def batch_entropy(student: LogProbs, weight: PerHead, average: Average = alone) -> Scored:
    """lambda sum_c pbar_c log pbar_c over the student's batch mean: pulls the batch towards equal clusters.

    `average` takes the mean over the processes that share the batch.
    """
    probability = student.exp()
    log_mean = average(probability.mean(1)).clamp_min(TINY).log()
    loss = weight * (log_mean.exp() * log_mean).sum(-1)
    return loss, weight[:, None, None] * (log_mean + 1)[:, None] * probability / student.shape[1]


def sample_entropy(student: LogProbs, weight: PerHead) -> Scored:
    """lambda mean over rows of H(q_s): pulls every single image towards one cluster."""
    probability = student.exp()
    loss = -weight * (probability * student).sum(-1).mean(-1)
    return loss, -weight[:, None, None] * probability * (student + 1) / student.shape[1]


def told_pairs(student: LogProbs, together: Bool[Tensor, " P"]) -> Scored:
    """Mean over P pairs of -log s where a person said that both belong together, of -log(1 - s) where not.

    s = sum_c q(c|x) q(c|x'), the probability that both are in one cluster; row i's partner is row i + P. Both sides
    learn. The pairwise cross-entropy of Hsu, Lv and Kira, "Learning to Cluster in Order to Transfer Across Domains and
    Tasks", ICLR 2018, with the inner product for the likelihood.
    """
    one, other = student.chunk(2, dim=1)
    shared = one + other
    agreement = shared.logsumexp(-1)
    left = torch.expm1(agreement).neg().clamp_min(SMALLEST_DOUBT)
    loss = torch.where(together, -agreement, -left.log()).mean(-1)
    slope = torch.where(together, -1.0, agreement.exp() / left) / len(together)
    gradient = (shared - agreement[..., None]).exp() * slope[..., None]
    return loss, torch.cat([gradient, gradient], dim=1)


def logit_gradient(gradient: LogProbs, student: LogProbs) -> Float[Tensor, "G M C"]:
    """Carry a gradient through log_softmax(s), s = z / tau: ds = g - q_s sum_c g."""
    return torch.addcmul(gradient, student.exp(), gradient.sum(-1, keepdim=True), value=-1)
