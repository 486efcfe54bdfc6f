"""Stage two: train the heads of all trials of a pass on cached tensors.

One step gathers a batch of pairs by index, runs student and teacher heads, takes the objective's closed-form gradient
at the logits, and updates all heads with their trial's own hyperparameters. A trial whose loss or gradient is not
finite sits the step out; the others go on.
"""

import itertools
import math
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from temi.pipeline.config import Config, objective_settings
from temi.pipeline.device import tensor_cores
from temi.pipeline.features.constraints import Constraints
from temi.pipeline.heads import losses
from temi.pipeline.heads.batches import Batches, TrainingSet
from temi.pipeline.heads.constrained import ConstrainedPairs
from temi.pipeline.heads.cuda_graph import Replay
from temi.pipeline.heads.lanes import Lanes
from temi.pipeline.heads.objectives import Alike, PairBatch, alike, score
from temi.pipeline.heads.optimizer import StackedAdamW
from temi.pipeline.heads.processes import ALONE, Processes
from temi.pipeline.heads.schedule import learning_rate, teacher_momentum, total_steps
from temi.pipeline.heads.stack import LAST_LAYER, Heads, dropout_mask_, init_heads
from temi.pipeline.registry import OBJECTIVES, REGULARIZERS

MARGINAL_ROWS = 4096  # rows per block while the first marginal is summed
PROBED_ROWS = 256  # rows that tell whether heads overflow
HEAD_COPIES = 5  # student, teacher, two moments, best checkpoint
WRITE_COPIES = 8  # of one trial while it is written: four tensors, as bytes and again packed
KEPT_COPIES = 3  # teacher outputs: one in use, two that the C library keeps (measured)
WORK_COPIES = {"linear": 4, "published": 10, "mlp-bn": 12}  # of the widest activation of a block
BLOCK_BYTES = 2**21  # widest activation of a block on a CPU: about a core's second-level cache


@dataclass(frozen=True)
class Block:
    """Consecutive heads whose activations are computed together.

    Attributes
    ----------
    heads : its part of axis G
    student, teacher : those heads, in the memory of the whole stack
    trials : each trial it has heads of, with the place of the trial's heads within the block
    alike : its heads by their number of clusters
    """

    heads: slice
    student: Heads
    teacher: Heads
    trials: list[tuple[int, slice]]
    alike: Alike


class HeadTrainer:
    """Students, teachers, marginals and optimizer of T trials that share head kind, objective and batches.

    Parameters
    ----------
    configs : one per trial; they may differ in the settings marked PER_TRIAL in config.py, and in objectives of the
        same loss
    data : what to train on
    processes : the processes that share every batch
    born : the step of the pass at which each trial begins its schedules; of all at 0 by default
    told : what a person said of the rows, if anything
    """

    def __init__(
        self,
        configs: Sequence[Config],
        data: TrainingSet,
        processes: Processes = ALONE,
        born: Sequence[int] | None = None,
        told: Constraints | None = None,
    ):
        self.config, self.data, self.trials, self.processes = configs[0], data, len(configs), processes
        self.heads_per_trial = self.config.heads.count
        self.device = data.device
        self.batches = Batches(data, self.config.pairs, self.config.train.batch_size, (processes.rank, processes.size))
        self.steps = total_steps(self.config, len(data))
        clusters = [config.heads.clusters for config in configs]
        fresh = init_heads(self.config.heads, data.bank.shape[1], clusters, [config.train.seed for config in configs])
        self.student = fresh.to(self.device)
        self.teacher = self.student.clone()
        self.marginal = self.student.outputs / self.student.outputs.sum(-1, keepdim=True)
        self.blocks = self._cut_into_blocks()
        rows = 2 * self.batches.size // processes.size
        self.lanes = self._open_lanes(rows)
        self.x = torch.empty(rows, data.bank.shape[1], device=self.device)
        pairs = None if told is None else ConstrainedPairs(told, data, min(clusters), self.config.pairs.seed)
        self.told = pairs if pairs is not None and len(pairs.together) else None
        self.number = torch.zeros(1, dtype=torch.long, device=self.device)
        self.born = torch.tensor(born or [0] * self.trials, device=self.device)
        self.keep: Tensor | None = None
        if self.config.heads.kind == "mlp-bn" and self.config.heads.dropout:
            self.keep = torch.empty(self.heads_per_trial, rows, self.config.heads.hidden, device=self.device)
        self._place_hyperparameters(configs)
        decay = [configs[trial].optimizer.weight_decay for block in self.blocks for trial, _ in block.trials]
        self.optimizer = StackedAdamW(self.student.weights, decay)
        self.window = Window(self.trials, self.heads_per_trial, self.device)
        self.skipped = torch.zeros(self.trials, dtype=torch.long, device=self.device)
        self.skipped_in_a_row = torch.zeros_like(self.skipped)
        # Step function per set of frozen layers; at most two.
        self._computes: dict[Sequence[str], Callable[[], None]] = {}
        graphs = self.device.type == "cuda" and processes.size == 1
        self.record: Callable[[Callable[[], None]], Callable[[], None]] = Replay if graphs else _as_it_is

    def _cut_into_blocks(self) -> list[Block]:
        """All heads at once on a GPU; elsewhere blocks that stay in the processor's cache and within one trial.

        So on a CPU a trial is computed by the same operations whether it trains alone or beside others.
        """
        per_trial, total = self.heads_per_trial, self.trials * self.heads_per_trial
        size = total
        if self.device.type == "cpu":
            rows = 2 * self.batches.size // self.processes.size
            size = heads_per_block(self.config, rows, self.student.outputs.shape[1])
        blocks = []
        for first in range(0, total, size):
            span = slice(first, first + size)
            student, teacher = self.student.select(span), self.teacher.select(span)
            inside = [(trial, slice(trial * per_trial, (trial + 1) * per_trial)) for trial in range(self.trials)]
            if size < total:
                inside = [(first // per_trial, slice(0, size))]
            blocks.append(Block(span, student, teacher, inside, alike(student.outputs)))
        return blocks

    def _open_lanes(self, rows: int) -> Lanes:
        """One lane on a GPU, and where a loss waits for the other processes: they have to meet in one order."""
        if self.device.type != "cpu" or self.processes.size > 1:
            return Lanes(1, large=True)
        width = activation_bytes(self.config, rows, self.student.outputs.shape[1])
        return Lanes(len(self.blocks), large=width * len(self.blocks[0].student.outputs) >= BLOCK_BYTES)

    def _place_hyperparameters(self, configs: Sequence[Config]) -> None:
        """One value per head, and tables over the steps, on the device: a step waits for nothing."""

        def per_head(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=self.device).repeat_interleave(self.heads_per_trial)

        self.settings = {name: per_head(values) for name, values in objective_settings(configs).items()}
        self.student_temperature = self.settings["student_temperature"]
        self.teacher_temperature = self.settings["teacher_temperature"]
        self.marginal_momentum = self.settings["marginal_momentum"]
        named = [OBJECTIVES[c.objective.name] for c in configs]
        self.objective, self.regularizer = named[0], REGULARIZERS[self.config.objective.regularizer]
        weighing = [objective.pairs for objective in named]
        self.weighing = {kind: per_head([kind == own for own in weighing])[:, None] for kind in set(weighing)}
        self.clip = torch.tensor([c.optimizer.clip or math.inf for c in configs], device=self.device)
        self.clipped = [c.optimizer.clip > 0 for c in configs]
        rates = [learning_rate(c.optimizer, self.steps) for c in configs]
        self.rates = torch.stack(rates, dim=1).to(self.device)
        momenta = [teacher_momentum(c.teacher, self.steps) for c in configs]
        self.momenta = torch.stack(momenta, dim=1).to(self.device)

    @torch.no_grad()
    def step(self, number: int, bank_rows: Int64[Tensor, " M"]) -> None:
        """Train on one batch of pairs: anchors, then their partners, as rows of the bank."""
        self.data.gather(bank_rows, out=self.x)
        self.number.fill_(number)
        if self.told is not None:
            self.told.draw(number)
        if self.keep is not None:
            generator = torch.Generator(self.device).manual_seed(self.config.pairs.seed * 1_000_003 + number)
            dropout_mask_(self.keep, self.config.heads.dropout, generator)
        frozen = LAST_LAYER if number < self.config.optimizer.freeze_last * self.steps else ()
        if frozen not in self._computes:
            me = weakref.proxy(self)  # without a circle of references, a pass's bank and heads are freed when it ends
            self._computes[frozen] = self.record(partial(HeadTrainer._compute, me, frozen))
        with tensor_cores(self.device), self.lanes.own_threads():
            self._computes[frozen]()

    def _compute(self, frozen: Sequence[str]) -> None:
        """One step on what lies in `x`, `number` and `keep`: tensors in, tensors changed, the host waits for none."""
        teacher, marginal, overlap = zip(*self.lanes.each(self._teach, self.blocks), strict=True)
        seen = self.processes.average(torch.cat(marginal))  # linear in what a process saw
        weight = self._pair_weight(overlap)
        prior = [seen[block.heads] for block in self.blocks]
        learned = self.lanes.each(self._learn, self.blocks, teacher, prior, weight)
        loss = torch.cat([loss for loss, _ in learned])
        gradients = [gradient for _, gradient in learned]
        self.processes.average_all_([loss, *(gradient for named in gradients for gradient in named.values())])
        good, norm = self._guard(loss, gradients)
        self._update(gradients, good, norm, frozen)
        torch.where(good.repeat_interleave(self.heads_per_trial)[:, None], seen, self.marginal, out=self.marginal)
        self.window.add(loss, norm, good)

    def _teach(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Teachers' log q_t (g, M, C), their marginal with this batch (g, C), and the overlap of each pair (g, B)."""
        span = block.heads
        teacher = block.teacher.forward(self.x, self.teacher_temperature[span], training=True).logits
        probability, log_sum = losses.softmax(teacher)
        teacher.sub_(log_sum[..., None])
        marginal = losses.update_marginal(self.marginal[span], probability, self.marginal_momentum[span])
        return teacher, marginal, losses.overlap(probability)

    def _pair_weight(self, overlap: Sequence[Float[Tensor, "g B"]]) -> Sequence[Float[Tensor, "g M"]]:
        """w of every head's rows, block by block: that of its trial's objective; 1 where it weighs no pairs."""
        every = torch.cat(list(overlap))
        weight = torch.ones_like(every).repeat(1, 2)
        for kind, heads in (("trial", self.heads_per_trial), ("head", 1)):
            if kind in self.weighing:
                weight = torch.where(self.weighing[kind], losses.pair_weight(every, heads), weight)
        return weight.chunk(len(overlap))

    def _learn(
        self, block: Block, teacher: Tensor, marginal: Tensor, weight: Tensor
    ) -> tuple[Float[Tensor, " g"], dict[str, Tensor]]:
        """Loss of each head of a block and the gradient of its weights."""
        keep, span = self.keep, block.heads
        if keep is not None and len(block.trials) == 1:
            keep = keep[span.start % len(keep) :][: len(block.student.outputs)]
        passed = block.student.forward(self.x, self.student_temperature[span], training=True, keep=keep)
        loss, gradient = self._objective(block, passed.logits, teacher, marginal, weight)
        share = 1 / self.heads_per_trial
        gradients = block.student.gradients(passed, gradient, share)
        if self.told is None:
            return loss, gradients
        more, own = self.told.learn(block.student, self.student_temperature[span], share)
        return loss + more, {name: gradient + own[name] for name, gradient in gradients.items()}

    def _objective(
        self, block: Block, scores: Tensor, teacher: Tensor, marginal: Tensor, weight: Tensor
    ) -> tuple[Float[Tensor, " g"], Float[Tensor, "g M C"]]:
        """Loss per head and its gradient at the student's scores z / tau."""
        own = {name: values[block.heads] for name, values in self.settings.items()}
        batch = PairBatch(
            scores,
            teacher,
            marginal.clamp_min(losses.TINY).log(),
            weight,
            block.student.outputs,
            block.alike,
            own,
            self.processes.average,
        )
        named = self.config.objective
        loss, gradient = score(f"the objective {named.name!r}", self.objective.loss, batch)
        if named.regularizer != "none":
            extra, extra_gradient = score(f"the regularizer {named.regularizer!r}", self.regularizer.loss, batch)
            strength = own["regularizer_weight"]
            loss, gradient = loss + strength * extra, gradient + strength[:, None, None] * extra_gradient
        return loss, gradient

    def _guard(
        self, loss: Float[Tensor, " G"], gradients: Sequence[dict[str, Tensor]]
    ) -> tuple[Bool[Tensor, " T"], Float[Tensor, " T"]]:
        """Which trials have a finite loss and gradient, and the norm of the gradient; the others are counted."""
        norms = [
            torch.stack([g.reshape(len(block.trials), -1).norm(dim=1) for g in named.values()]).norm(dim=0)
            for block, named in zip(self.blocks, gradients, strict=True)
        ]
        norm = torch.cat(norms).view(self.trials, -1).norm(dim=1)
        good = norm.isfinite() & loss.view(self.trials, -1).isfinite().all(1)
        self.skipped += ~good
        self.skipped_in_a_row.add_(1).mul_(~good)
        return good, norm

    def _update(
        self, gradients: Sequence[dict[str, Tensor]], good: Tensor, norm: Tensor, frozen: Sequence[str]
    ) -> None:
        """One clipped step of every student; teacher <- m teacher + (1 - m) student.

        Batch-norm statistics of the teacher are its own.
        """
        age = (self.number - self.born)[None]
        rate, momentum = (table.gather(0, age)[0] for table in (self.rates, self.momenta))
        skip, shrink, follow = (~good).float(), (norm / self.clip).clamp_min(1), 1 - momentum
        first = itertools.accumulate((len(block.trials) for block in self.blocks), initial=0)

        def update(block: Block, named: dict[str, Tensor], start: int) -> None:
            for group, (trial, inside) in enumerate(block.trials, start):
                own = {name: gradient[inside] for name, gradient in named.items()}
                divisor = shrink[trial] if self.clipped[trial] else None
                self.optimizer.step(group, own, rate[trial], skip[trial], divisor, frozen)
                for name, weight in block.teacher.weights.items():
                    weight[inside].lerp_(block.student.weights[name][inside], follow[trial])

        self.lanes.each(update, self.blocks, gradients, first)

    @torch.no_grad()
    def begin_at_students(self, trials: Collection[int]) -> None:
        """Start teachers and marginals of `trials` at what their students are."""
        rows = torch.split(self.data.originals, MARGINAL_ROWS)
        for block in self.blocks:
            chosen = [inside for trial, inside in block.trials if trial in trials]
            for inside in chosen:
                for name, tensor in block.teacher.tensors().items():
                    tensor[inside].copy_(block.student.tensors()[name][inside])
            if chosen:
                temperature = self.teacher_temperature[block.heads]
                seen = (block.teacher.probabilities(x.to(self.device), temperature) for x in rows)
                mass = torch.stack([probability.sum(1) for probability in seen]).sum(0)
                for inside in chosen:
                    self.marginal[block.heads][inside] = mass[inside] / len(self.data.originals)

    def state(self) -> dict[str, Tensor]:
        """Every tensor a bit-exact resume needs; the leading axis divides evenly among the trials."""
        named = {"student": self.student, "teacher": self.teacher}
        tensors = {f"{role}.{name}": t for role, heads in named.items() for name, t in heads.tensors().items()}
        tensors |= {"marginal": self.marginal}
        tensors |= {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        return tensors | self.optimizer.state()

    def heads_of(self, trial: int) -> Tensor:
        """Positions of a trial's heads on axis G."""
        first = trial * self.heads_per_trial
        return torch.arange(first, first + self.heads_per_trial, device=self.device)

    @torch.no_grad()
    def finite(self, trial: int) -> bool:
        """Whether the teachers of a trial are finite, and not so large that what they say of rows is not."""
        heads, rows = self.heads_of(trial), self.data.originals[:PROBED_ROWS].to(self.device)
        teacher = self.teacher.select(heads)
        said = teacher.probabilities(rows, self.teacher_temperature[heads])
        return all(bool(tensor.isfinite().all()) for tensor in (*teacher.tensors().values(), said))

    def trial(self, index: int) -> "Slice":
        """The part of every tensor of `state` that belongs to trial `index`."""
        return Slice({name: tensor.chunk(self.trials)[index] for name, tensor in self.state().items()})


def _as_it_is(function: Callable[[], None]) -> Callable[[], None]:
    return function


def heads_per_block(config: Config, rows: int, clusters: int) -> int:
    """Heads of a block on a CPU: the largest divisor of H whose widest activation is within BLOCK_BYTES.

    The rule is measured: ``benchmarks/heads.py --blocks``.
    """
    fitting = max(1, BLOCK_BYTES // activation_bytes(config, rows, clusters))
    count = config.heads.count
    return max(size for size in range(1, count + 1) if count % size == 0 and size <= fitting)


def activation_bytes(config: Config, rows: int, clusters: int) -> int:
    """Of the widest activation of one head."""
    width = clusters if config.heads.kind == "linear" else max(clusters, config.heads.hidden)
    return rows * width * torch.float32.itemsize


def heads_bytes(trials: int, count: int, weights: int) -> int:
    """Memory of `trials` times `count` heads of so many weights each, and of writing one trial of them."""
    return (HEAD_COPIES * trials + WRITE_COPIES) * count * weights * torch.float32.itemsize


def step_bytes(config: Config, trials: int, rows: int, width: int, widest: int, clusters: int, device: str) -> int:
    """Memory of the activations of a step on a training set of `rows` rows; `widest` is the widest layer of a head."""
    batch, heads = 2 * min(config.train.batch_size, rows), trials * config.heads.count
    together = heads_per_block(config, batch, clusters) * torch.get_num_threads() if device == "cpu" else heads
    kept = KEPT_COPIES * heads * clusters  # what the teachers said, until the students have learned it
    work = WORK_COPIES[config.heads.kind] * min(together, heads) * widest
    return batch * (kept + work + width) * torch.float32.itemsize


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

    def add(self, loss: Float[Tensor, " G"], norm: Float[Tensor, " T"], good: Bool[Tensor, " T"]) -> None:
        """Count one step; a trial that sat it out is not in its means."""
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
