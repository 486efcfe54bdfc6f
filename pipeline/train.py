"""Stage two: train the heads of all trials of a pass on cached tensors.

One step gathers a batch of pairs by index, runs student and teacher heads, takes the objective's closed-form gradient
at the logits, and updates all heads with their trial's own hyperparameters. A trial whose loss or gradient is not
finite sits the step out; the others go on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline import objectives
from pipeline.config import Config, OptimizerConfig, TeacherConfig
from pipeline.data import Batches, TrainingSet
from pipeline.heads import LAST_LAYER, dropout_mask, init_heads
from pipeline.optimizer import StackedAdamW


def total_steps(config: Config, rows: int) -> int:
    """Steps of a run: `epochs` passes over the rows, and at least `min_steps`."""
    batch = min(config.train.batch_size, rows)
    return max(config.train.min_steps, math.ceil(config.train.epochs * (rows // batch)))


def learning_rate(config: OptimizerConfig, steps: int) -> Float[Tensor, " S"]:
    """Rate of each step: linear warm-up from 0, then a cosine from `lr` to `min_lr`, or `lr` throughout."""
    step = torch.arange(steps, dtype=torch.float64)
    warmup = round(config.warmup * steps)
    progress = ((step - warmup) / max(steps - warmup - 1, 1)).clamp(0, 1)
    decayed = config.min_lr + (config.lr - config.min_lr) * (1 + (math.pi * progress).cos()) / 2
    rate = decayed if config.schedule == "cosine" else torch.full_like(step, config.lr)
    return torch.where(step < warmup, config.lr * (step + 1) / max(warmup, 1), rate).float()


def teacher_momentum(config: TeacherConfig, steps: int) -> Float[Tensor, " S"]:
    """Momentum of each step: a cosine from `momentum` to `final_momentum`."""
    progress = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    rise = (1 - (math.pi * progress).cos()) / 2
    return (config.momentum + (config.final_momentum - config.momentum) * rise).float()


class HeadTrainer:
    """Students, teachers, marginals and optimizer of T trials that share head kind, objective and batches.

    Parameters
    ----------
    configs : one per trial; they may differ in every number, not in heads.kind, heads.count, objective.name,
        objective.regularizer, pairs, or the length of training
    data : what to train on
    """

    def __init__(self, configs: Sequence[Config], data: TrainingSet):
        self.config, self.data, self.trials = configs[0], data, len(configs)
        self.heads_per_trial = self.config.heads.count
        self.device = data.bank.device
        self.batches = Batches(data, self.config.pairs, self.config.train.batch_size)
        self.steps = total_steps(self.config, len(data.rows))
        clusters = [config.heads.clusters for config in configs]
        fresh = init_heads(self.config.heads, data.bank.shape[1], clusters, [config.train.seed for config in configs])
        self.student = fresh.to(self.device)
        self.teacher = self.student.clone()
        for weight in self.student.weights.values():
            weight.requires_grad_()
        self._place_hyperparameters(configs)
        self.optimizer = StackedAdamW(self.student.weights, self.weight_decay)
        self.marginal = self.student.outputs / self.student.outputs.sum(-1, keepdim=True)
        self.window = Window(self.trials, self.heads_per_trial, self.device)
        self.skipped = torch.zeros(self.trials, dtype=torch.long, device=self.device)
        self.skipped_in_a_row = torch.zeros_like(self.skipped)

    def _place_hyperparameters(self, configs: Sequence[Config]) -> None:
        """One value per head on the device, and tables over the steps, so that a step never waits for the host."""

        def per_head(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=self.device).repeat_interleave(self.heads_per_trial)

        self.beta = per_head([c.objective.beta for c in configs])
        self.student_temperature = per_head([c.objective.student_temperature for c in configs])
        self.teacher_temperature = per_head([c.objective.teacher_temperature for c in configs])
        self.marginal_momentum = per_head([c.objective.marginal_momentum for c in configs])
        self.scan_entropy = per_head([c.objective.scan_entropy for c in configs])
        self.regularizer_weight = per_head([c.objective.regularizer_weight for c in configs])
        self.weight_decay = per_head([c.optimizer.weight_decay for c in configs])
        self.clip = torch.tensor([c.optimizer.clip or math.inf for c in configs], device=self.device)
        rates = torch.stack([learning_rate(c.optimizer, self.steps) for c in configs], dim=1)
        momenta = torch.stack([teacher_momentum(c.teacher, self.steps) for c in configs], dim=1)
        self.rates = rates.to(self.device).repeat_interleave(self.heads_per_trial, dim=1)
        self.momenta = momenta.to(self.device).repeat_interleave(self.heads_per_trial, dim=1)

    def step(self, number: int, bank_rows: Int64[Tensor, " M"]) -> None:
        """Train on one batch of pairs: anchors, then their partners, as rows of the bank."""
        x = self.data.bank[bank_rows]
        logits = self.student.logits(x, training=True, keep=self._dropout(number, len(x)))
        student = (logits.detach() / self.student_temperature[:, None, None]).log_softmax(-1)
        with torch.no_grad():
            teacher_logits = self.teacher.logits(x, training=True)
            teacher = (teacher_logits / self.teacher_temperature[:, None, None]).log_softmax(-1)
        marginal = objectives.update_marginal(self.marginal, teacher.exp(), self.marginal_momentum)
        loss, gradient = self._objective(student, teacher, marginal)
        gradient = objectives.logit_gradient(gradient, student, self.student_temperature) / self.heads_per_trial
        names = list(self.student.weights)
        gradients = dict(
            zip(names, torch.autograd.grad(logits, list(self.student.weights.values()), gradient), strict=True)
        )
        active, norm = self._guard_and_clip(loss, gradients)
        self.marginal = torch.where(active[:, None], marginal, self.marginal)
        frozen = LAST_LAYER if number < self.config.optimizer.freeze_last * self.steps else ()
        self.optimizer.step(gradients, self.rates[number], active, frozen)
        self._follow(self.momenta[number])
        self.window.add(loss, norm, active)

    def _objective(
        self, student: Float[Tensor, "G M C"], teacher: Float[Tensor, "G M C"], marginal: Float[Tensor, "G C"]
    ) -> tuple[Float[Tensor, " G"], Float[Tensor, "G M C"]]:
        """Loss per head and its gradient at the student's log-probabilities."""
        partner = objectives.swap_partners(teacher)
        log_marginal = marginal.clamp_min(objectives.TINY).log()
        match self.config.objective.name:
            case "scan":
                loss, gradient = objectives.scan(student, partner, self.scan_entropy)
            case "beta-mi":
                loss, gradient = objectives.beta_mi(student, partner, log_marginal, self.beta)
            case name:
                heads = {"temi": self.heads_per_trial, "wmi": 1}.get(name)
                weight = objectives.pair_weight(teacher.exp(), heads) if heads else torch.ones_like(student[..., 0])
                loss, gradient = objectives.temi(student, partner, log_marginal, self.beta, weight)
        if self.config.objective.regularizer != "none":
            term = _REGULARIZERS[self.config.objective.regularizer]
            extra, extra_gradient = term(student, self.regularizer_weight)
            loss, gradient = loss + extra, gradient + extra_gradient
        return loss, gradient

    def _dropout(self, number: int, rows: int) -> Tensor | None:
        if self.config.heads.kind != "mlp-bn" or not self.config.heads.dropout:
            return None
        generator = torch.Generator(self.device).manual_seed(self.config.pairs.seed * 1_000_003 + number)
        shape = (self.heads_per_trial, rows, self.config.heads.hidden)
        return dropout_mask(shape, self.config.heads.dropout, generator, self.device)

    def _guard_and_clip(
        self, loss: Float[Tensor, " G"], gradients: dict[str, Tensor]
    ) -> tuple[Bool[Tensor, " G"], Float[Tensor, " T"]]:
        """Scale each trial's gradient to its clip norm; zero it, and mark its heads inactive, where not finite."""
        square = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0)
        norm = square.view(self.trials, -1).sum(1).sqrt()
        good = norm.isfinite() & loss.view(self.trials, -1).isfinite().all(1)
        scale = (self.clip / norm.clamp_min(objectives.TINY)).clamp(max=1).repeat_interleave(self.heads_per_trial)
        active = good.repeat_interleave(self.heads_per_trial)
        for gradient in gradients.values():
            shape = (-1, *[1] * (gradient.ndim - 1))
            gradient.mul_(scale.view(shape)).masked_fill_(~active.view(shape), 0.0)
        self.skipped += ~good
        self.skipped_in_a_row = torch.where(good, 0, self.skipped_in_a_row + 1)
        return active, norm

    @torch.no_grad()
    def _follow(self, momentum: Float[Tensor, " G"]) -> None:
        """teacher <- m teacher + (1 - m) student; batch-norm statistics are the teacher's own."""
        for name, weight in self.teacher.weights.items():
            weight.lerp_(self.student.weights[name], (1 - momentum).view(-1, *[1] * (weight.ndim - 1)))

    def state(self) -> dict[str, Tensor]:
        """Every tensor a bit-exact resume needs; the leading axis is T or G."""
        named = {"student": self.student, "teacher": self.teacher}
        tensors = {f"{role}.{name}": t.detach() for role, heads in named.items() for name, t in heads.tensors().items()}
        tensors |= {"marginal": self.marginal, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        return tensors | self.optimizer.state()

    def trial(self, index: int) -> "Slice":
        """The part of every tensor of `state` that belongs to trial `index`."""
        return Slice({name: tensor.chunk(self.trials)[index] for name, tensor in self.state().items()})


@dataclass(frozen=True)
class Slice:
    """Views into a trainer's state: one trial's share of every tensor."""

    tensors: dict[str, Tensor]

    def load(self, state: dict[str, Tensor]) -> None:
        """Overwrite this trial's share with `state`."""
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])


class Window:
    """Sums since the last reset, on the device: read by the host once in many steps."""

    def __init__(self, trials: int, heads: int, device: torch.device):
        self.loss = torch.zeros(trials, heads, device=device)
        self.norm = torch.zeros(trials, device=device)
        self.count = torch.zeros(trials, device=device)

    def add(self, loss: Float[Tensor, " G"], norm: Float[Tensor, " T"], active: Bool[Tensor, " G"]) -> None:
        """Count one step; a trial that sat it out is not in its means."""
        good = active.view(self.loss.shape)[:, 0]
        self.loss += torch.where(good[:, None], loss.view(self.loss.shape), 0.0)
        self.norm += torch.where(good, norm, 0.0)
        self.count += good

    def means(self) -> tuple[Float[Tensor, "T H"], Float[Tensor, " T"]]:
        """Mean loss per head and mean gradient norm per trial; NaN where every step was skipped."""
        return self.loss / self.count[:, None], self.norm / self.count

    def reset(self) -> None:
        """Start a new window."""
        for tensor in (self.loss, self.norm, self.count):
            tensor.zero_()


_REGULARIZERS = {"batch-entropy": objectives.batch_entropy, "sample-entropy": objectives.sample_entropy}
