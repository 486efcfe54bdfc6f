"""What a training step minimizes: objectives and regularizers by name, and how a file of one's own adds one.

::

    from temi.pipeline.heads.objectives import Objective, by_autograd, register_objective

    def loss(batch):                                     # one number per head
        return -(batch.student + batch.partner).logsumexp(-1).mean(-1)

    register_objective("mine", Objective(by_autograd(loss)))

The equations of those below are in losses.py, with gradients in closed form: that is an optimization, no duty.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from numbers import Real
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from temi.pipeline.config import LARGEST, ObjectiveConfig
from temi.pipeline.errors import UserError
from temi.pipeline.heads import losses
from temi.pipeline.heads.losses import Average, LogProbs, PerHead, PerRow, Scored
from temi.pipeline.plugins import blame
from temi.pipeline.registry import OBJECTIVES, REGULARIZERS

Alike = tuple[tuple[int, Int64[Tensor, " _"]], ...]
"""Heads of equally many clusters: how many those are, and which heads have them."""


def alike(exists: Bool[Tensor, "g C"]) -> Alike:
    """The heads by their number of clusters, fewest first.

    It waits for the device. So it is asked for once, and not in a step.
    """
    clusters = exists.sum(1)
    return tuple((count, (clusters == count).nonzero()[:, 0]) for count in sorted(set(clusters.tolist())))


@dataclass(frozen=True)
class PairBatch:
    """One step as an objective sees it: g heads, M = 2B rows of B pairs, C clusters; row i's partner is i + B mod M.

    Attributes
    ----------
    scores : (g, M, C) the student's logits divided by the temperature; gradients are taken here
    teacher : (g, M, C) log q_t of each row
    log_marginal : (g, C) log p, p the EMA of the teacher's batch mean
    weight : (g, M) of each row's pair; ones unless the objective weighs pairs
    exists : (g, C) False where a head has fewer clusters than the widest of its pass: log q is about -1e4 there
    alike : `alike` of `exists`
    settings : per-head values, (g,), of ``objective.NAME``: the trials of a pass may differ in them
    average : the mean over the processes that share the batch, without a gradient
    """

    scores: Float[Tensor, "g M C"]
    teacher: LogProbs
    log_marginal: Float[Tensor, "g C"]
    weight: PerRow
    exists: Bool[Tensor, "g C"]
    alike: Alike
    settings: Mapping[str, PerHead]
    average: Average = losses.alone

    @cached_property
    def student(self) -> LogProbs:
        """log q_s of each row."""
        return self.scores.log_softmax(-1)

    @cached_property
    def partner(self) -> LogProbs:
        """log q_t of each row's partner."""
        return losses.swap_partners(self.teacher)

    def mean(self, rows: Float[Tensor, "g M C"]) -> Float[Tensor, "g C"]:
        """The mean over all rows of the batch, those of other processes included; a gradient flows to the own rows."""
        own = rows.mean(1)
        return own + (self.average(own.detach()) - own.detach())

    def heads(self, index: Tensor, clusters: int) -> "PairBatch":
        """The same step for the heads at `index`, which have the first `clusters` clusters and no others."""
        return replace(
            self,
            scores=self.scores[index, :, :clusters],
            teacher=self.teacher[index, :, :clusters],
            log_marginal=self.log_marginal[index, :clusters],
            weight=self.weight[index],
            exists=self.exists[index, :clusters],
            alike=((clusters, torch.arange(len(index), device=index.device)),),
            settings={name: values[index] for name, values in self.settings.items()},
        )


Loss = Callable[[PairBatch], Scored]
"""Loss per head, (g,), and its gradient at `PairBatch.scores`."""

Weighing = Literal["trial", "head", "none"]
"""How far teachers must agree on a pair: all heads of a trial together, each head alone, or not at all."""


@dataclass(frozen=True)
class Objective:
    """What `objective.name` names.

    Attributes
    ----------
    loss : of a step. Objectives of the same loss can train in one pass, whatever their weights
    pairs : weigh pairs by how far the teachers agree on them: all heads of a trial together, each head alone, or not
    settings : its own settings with their defaults, given as ``--set objective.NAME=VALUE``, one value per trial
    """

    loss: Loss
    pairs: Weighing = "none"
    settings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Regularizer:
    """What `objective.regularizer` names: a term that is added, times ``objective.regularizer_weight``."""

    loss: Loss
    settings: Mapping[str, float] = field(default_factory=dict)


def register_objective(name: str, objective: Objective) -> None:
    """Make `objective` available as ``objective.name = NAME``.

    Raises
    ------
    UserError
        The name is taken, it is no `Objective`, weighs pairs as none can be, or one of its settings is no number or
        has the name of one that all objectives have.
    """
    _check_entry("objective", name, objective, Objective)
    OBJECTIVES.register(name, objective)


def register_regularizer(name: str, regularizer: Regularizer) -> None:
    """Make `regularizer` available as ``objective.regularizer = NAME``; raises as `register_objective` does."""
    _check_entry("regularizer", name, regularizer, Regularizer)
    REGULARIZERS.register(name, regularizer)


def _check_entry(kind: str, name: str, entry: object, wanted: type[Objective] | type[Regularizer]) -> None:
    """Said at registration: a plugin that is wrong here would fail in the middle of training."""
    if not isinstance(entry, wanted):
        raise UserError(
            f"the {kind} {name!r} is no {wanted.__name__} but {type(entry).__name__}; "
            f"register {wanted.__name__}(by_autograd(loss))"
        )
    if isinstance(entry, Objective) and entry.pairs not in get_args(Weighing):
        raise UserError(
            f"the {kind} {name!r} has pairs = {entry.pairs!r}; choose one of {', '.join(get_args(Weighing))}"
        )
    for setting, default in entry.settings.items():
        if setting in ObjectiveConfig.model_fields:
            raise UserError(
                f"the {kind} {name!r} has the setting {setting}, which is a setting of temi's own; choose another name"
            )
        if isinstance(default, bool) or not isinstance(default, Real) or not abs(default) <= LARGEST:
            raise UserError(f"the {kind} {name!r} has the setting {setting} = {default!r}; give it a number as default")


def by_autograd(loss: Callable[[PairBatch], PerHead]) -> Loss:
    """A loss whose gradient autograd finds.

    `loss` returns one number per head, (g,). It is called once for all heads of equally many clusters, so it never
    meets a cluster that a head lacks: sums, entropies and Sinkhorn rounds need no masks. On a GPU a loss that waits for
    it (``.item()``, ``nonzero``, a boolean index) is slower: its steps cannot be recorded (cuda_graph.py).

    The loss that comes of it raises UserError where `loss` returns anything else, or nothing that has a gradient.
    """

    @wraps(loss)  # an error in it is told with its file
    def scored(batch: PairBatch) -> Scored:
        value, gradient = torch.zeros_like(batch.scores[:, 0, 0]), torch.zeros_like(batch.scores)
        for count, index in batch.alike:
            own = batch.heads(index, count)
            with torch.enable_grad():
                scores = own.scores.detach().requires_grad_()
                found = loss(replace(own, scores=scores))
                slope = _slope(loss, found, scores)
            value[index] = found.detach().to(value.dtype)
            gradient[index, :, :count] = slope
        return value, gradient

    return scored


def _slope(loss: Callable[[PairBatch], PerHead], found: object, scores: Float[Tensor, "g M C"]) -> Tensor:
    """The gradient at `scores` of what `loss` returned; a scalar would have one, but heads would share their loss."""
    heads = len(scores)
    if not isinstance(found, Tensor) or found.shape != (heads,):
        came = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"{_named(loss)} returned {came} where ({heads},) is needed, one number per head; "
            "take the mean over rows with .mean(-1)"
        )
    slope = torch.autograd.grad(found.sum(), scores, allow_unused=True)[0] if found.requires_grad else None
    if slope is None:
        raise UserError(f"{_named(loss)} does not depend on batch.student or batch.scores; compute it from one of them")
    return slope


def _named(loss: Callable[[PairBatch], PerHead]) -> str:
    """A loss by where it is written: the name it is registered by is not known here, and one may have several."""
    code = getattr(loss, "__code__", None)
    return f"the loss at {code.co_filename}:{code.co_firstlineno}" if code else f"the loss {loss!r}"


def score(what: str, loss: Loss, batch: PairBatch) -> Scored:
    """`loss` of a step.

    Raises
    ------
    UserError
        The loss is a user's own and fails, or it returns anything but a loss per head and a gradient; `what` names it.
    """
    with blame(what, loss):
        found: object = loss(batch)
    wanted = [tuple(batch.scores.shape[:1]), tuple(batch.scores.shape)]
    came: list[object] = list(found) if isinstance(found, tuple | list) else [found]
    parts = [part.to(batch.scores.dtype) for part in came if isinstance(part, Tensor)]
    if len(parts) < len(came) or [tuple(part.shape) for part in parts] != wanted:
        shapes = [f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in came]
        raise UserError(
            f"{what} returned {' and '.join(shapes) or 'nothing'} where shape {wanted[0]}, the loss per head, and "
            f"shape {wanted[1]}, its gradient at batch.scores, are needed; return both, or register by_autograd(loss)"
        )
    return parts[0], parts[1]


def _temi(batch: PairBatch) -> Scored:
    prior = batch.settings["marginal_power"][:, None] * batch.log_marginal
    return losses.temi(batch.scores, batch.teacher, prior, batch.settings["beta"], batch.weight)


def _scan(batch: PairBatch) -> Scored:
    loss, gradient = losses.scan(batch.student, batch.partner, batch.settings["scan_entropy"], batch.average)
    return loss, losses.logit_gradient(gradient, batch.student)


def _beta_mi(batch: PairBatch) -> Scored:
    loss, gradient = losses.beta_mi(batch.student, batch.partner, batch.log_marginal, batch.settings["beta"])
    return loss, losses.logit_gradient(gradient, batch.student)


def _batch_entropy(batch: PairBatch) -> Scored:
    loss, gradient = losses.batch_entropy(batch.student, torch.ones_like(batch.scores[:, 0, 0]), batch.average)
    return loss, losses.logit_gradient(gradient, batch.student)


def _sample_entropy(batch: PairBatch) -> Scored:
    loss, gradient = losses.sample_entropy(batch.student, torch.ones_like(batch.scores[:, 0, 0]))
    return loss, losses.logit_gradient(gradient, batch.student)


def _nothing(batch: PairBatch) -> Scored:
    return torch.zeros_like(batch.scores[:, 0, 0]), torch.zeros_like(batch.scores)


register_objective("temi", Objective(_temi, pairs="trial"))
register_objective("pmi", Objective(_temi))
register_objective("wmi", Objective(_temi, pairs="head"))
register_objective("scan", Objective(_scan))
register_objective("beta-mi", Objective(_beta_mi))
register_regularizer("none", Regularizer(_nothing))
register_regularizer("batch-entropy", Regularizer(_batch_entropy))
register_regularizer("sample-entropy", Regularizer(_sample_entropy))
