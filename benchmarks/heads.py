"""One training step of all heads against a textbook loop over heads, and against the machine's matrix products.

Both train on the same batches; after the timing the losses of both are compared, so a fast step that computes something
else is noticed. Milliseconds, ratios and shares come from one interleaved run; small steps are taken several at a time,
as in training, where a step finds in the processor's cache what the step before left there. With one thread the clock
is the processor's, which other work on the machine lengthens less.

    python benchmarks/heads.py                        # kinds x H x C
    python benchmarks/heads.py --kinds linear --heads 16 --clusters 100 --dim 128
    python benchmarks/heads.py --blocks               # what BLOCK_BYTES in pipeline/heads/trainer.py was chosen by

Both sides run on the GPU where there is one; `--device cpu` keeps them from it.
"""

import argparse
import copy
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from temi.pipeline.config import Config, load_config
from temi.pipeline.device import keep_freed_memory, pick_device
from temi.pipeline.features.scaling import Moments, Scaling
from temi.pipeline.heads import trainer as train
from temi.pipeline.heads.batches import TrainingSet
from temi.pipeline.heads.cuda_graph import WARM_UP
from temi.pipeline.heads.stack import Heads
from temi.pipeline.products import library
from temi.pipeline.torch_private import onednn_linear

ROWS, NEIGHBORS = 8192, 20
RECORDED = WARM_UP + 1  # steps a turn on a GPU, at least: the turns that do not count then hold the recording
TURN = 0.05  # seconds that a side trains for before it is the other's turn, at least
REST = 0.3  # seconds after numpy's product: its idle threads keep cores busy that the next side would have
# In the order of a module's parameters; elsewhere it is the order of the stack.
WEIGHTS = {"published": ["first.weight", "first.bias", "second.weight", "second.bias", "last.gain", "last.direction"]}


class PublishedHead(nn.Module):
    """The published head, as a module."""

    def __init__(self, dim: int, clusters: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, 512), nn.GELU(), nn.Linear(512, 256))
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(256, clusters, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.normalize(self.body(x), dim=-1))


def module(kind: str, dim: int, clusters: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(dim, clusters)
    if kind == "published":
        return PublishedHead(dim, clusters)
    return nn.Sequential(nn.Linear(dim, 512), nn.BatchNorm1d(512), nn.GELU(), nn.Dropout(0.1), nn.Linear(512, clusters))


class Textbook:
    """TEMI with a module, an optimizer and an EMA teacher per head, and autograd through the loss."""

    def __init__(self, config: Config, data: TrainingSet, same: Heads):
        """Begin at the weights of `same`."""
        self.config, self.data = config, data
        dim, heads = data.bank.shape[1], config.heads
        device = data.device
        self.students = [module(heads.kind, dim, heads.clusters).to(device) for _ in range(heads.count)]
        names = WEIGHTS.get(heads.kind, list(same.weights))
        for number, student in enumerate(self.students):
            for name, weight in zip(names, student.parameters(), strict=True):
                weight.data.copy_(same.weights[name][number].view_as(weight))
        self.teachers = [copy.deepcopy(student).requires_grad_(False) for student in self.students]
        self.optimizers = [
            torch.optim.AdamW(student.parameters(), config.optimizer.lr, weight_decay=0.0) for student in self.students
        ]
        self.marginals = [torch.full((heads.clusters,), 1 / heads.clusters, device=device) for _ in self.students]
        self.losses: list[Tensor] = []

    def step(self, rows: Tensor) -> None:
        x, tau, beta = self.data.bank[rows], 0.1, self.config.objective.beta
        half = len(x) // 2
        log_teacher = []
        with torch.no_grad():
            for teacher in self.teachers:
                log_teacher.append((teacher(x) / tau).log_softmax(-1))
        weight = torch.stack([(t[:half].exp() * t[half:].exp()).sum(-1) for t in log_teacher]).mean(0)
        losses = []
        for head, student in enumerate(self.students):
            q = log_teacher[head]
            self.marginals[head] = 0.9 * self.marginals[head] + 0.1 * q.exp().mean(0)
            log_student = (student(x) / tau).log_softmax(-1)
            prior = self.marginals[head].log()
            first = -(beta * (log_student[:half] + q[half:]) - prior).logsumexp(-1)
            second = -(beta * (log_student[half:] + q[:half]) - prior).logsumexp(-1)
            loss = (weight * (first + second) / 2).mean()
            self.optimizers[head].zero_grad()
            loss.backward()
            losses.append(loss.detach())
        norm = torch.stack([w.grad.norm() for s in self.students for w in s.parameters()]).norm()
        if torch.isfinite(norm):  # the guard that the other side has too
            for optimizer in self.optimizers:
                optimizer.step()
        with torch.no_grad():
            for teacher, student in zip(self.teachers, self.students, strict=True):
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.lerp_(fast, 0.004)
        self.losses.append(torch.stack(losses).mean())


def settings(kind: str, heads: int, clusters: int, batch: int) -> Config:
    chosen = {
        "heads.kind": kind,
        "heads.count": heads,
        "heads.clusters": clusters,
        "train.batch_size": batch,
        "train.epochs": 0,
        "train.min_steps": 10_000,
        "objective.beta": 0.6,
        "optimizer.lr": 1e-3,
        "optimizer.warmup": 0,
        "optimizer.schedule": "constant",
        "optimizer.weight_decay": 0,
        "teacher.momentum": 0.996,
        "teacher.final_momentum": 0.996,
    }
    return load_config(None, [f"{name}={value}" for name, value in chosen.items()])


def training_set(dim: int, device: torch.device) -> TrainingSet:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(ROWS, dim, generator=generator).to(device)
    neighbors = torch.randint(ROWS, (ROWS, NEIGHBORS), generator=generator).to(device)
    return TrainingSet(bank, 0, neighbors, Scaling.fit("none", Moments(bank[:10])))


def flops(kind: str, heads: int, clusters: int, dim: int, rows: int) -> float:
    """Of the matrix products of a step: two forward passes and the backward pass of the students."""
    match kind:
        case "linear":
            first, later = dim * clusters, 0
        case "published":
            first, later = dim * 512, 512 * 256 + 256 * clusters
        case _:
            first, later = dim * 512, 512 * clusters
    return 2 * rows * heads * (3 * first + 4 * later)


def peak_gflops(device: torch.device) -> Callable[[], float]:
    """A timed square product, by the fastest library on a CPU: the peak that shares are shares of."""
    side = 2048 if device.type == "cpu" else 8192
    a, b, out = (torch.randn(side, side, device=device) for _ in range(3))
    by: list[Callable[[], Any]] = [lambda: torch.mm(a, b, out=out)]
    if device.type == "cpu":
        by += [lambda: onednn_linear(a, b), lambda: np.matmul(a.numpy(), b.numpy(), out=out.numpy())]

    def measure() -> float:
        seconds = min(timed(call) for call in by)
        time.sleep(REST)
        return 2 * side**3 / seconds / 1e9

    return measure


def timed(call: Callable[[], Any]) -> float:
    began = clock()
    call()
    return clock() - began


def clock() -> float:
    """Seconds, when everything asked of a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def several(step: Callable[[Tensor], None], batches: Sequence[Tensor], count: int) -> Callable[[int], None]:
    """`count` steps as one call."""

    def call(number: int) -> None:
        for rows in batches[number * count : (number + 1) * count]:
            step(rows)

    return call


def interleaved(calls: Sequence[Callable[[int], None]], rounds: int) -> list[list[float]]:
    """Seconds of each call in every round, one after the other within a round."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 2):
        for own, call in zip(seconds, calls, strict=True):
            began = clock()
            call(number)
            own.append(clock() - began)
    return [own[2:] for own in seconds]


def compare(kind: str, heads: int, clusters: int, dim: int, batch: int, rounds: int, device: torch.device) -> None:
    config, data = settings(kind, heads, clusters, batch), training_set(dim, device)
    ours = train.HeadTrainer([config], data)
    loop, peak = Textbook(config, data, ours.student), peak_gflops(device)
    numbers = itertools.count()
    first = next(ours.batches.bank_rows(0, 1))
    loop.step(first)  # the first is slower than any other
    began = clock()
    loop.step(first)
    count = max(RECORDED if device.type == "cuda" else 1, round(TURN / (clock() - began)))
    loop = Textbook(config, data, ours.student)
    batches = list(ours.batches.bank_rows(0, count * (rounds + 2)))
    rates: list[float] = []
    stacked, plain, _ = interleaved(
        [
            several(lambda rows: ours.step(next(numbers), rows), batches, count),
            several(loop.step, batches, count),
            lambda n: rates.append(peak()),
        ],
        rounds,
    )
    stacked, plain = ([seconds / count for seconds in side] for side in (stacked, plain))
    ratio = statistics.median(b / a for a, b in zip(stacked, plain, strict=True))
    work = flops(kind, heads, clusters, dim, 2 * batch) / 1e9
    share = statistics.median(work / s / rate for s, rate in zip(stacked, rates[2:], strict=True))
    plain_share = statistics.median(work / s / rate for s, rate in zip(plain, rates[2:], strict=True))
    losses = [ours.window.means()[0].mean().item(), torch.stack(loop.losses).mean().item()]
    print(
        f"{kind:9} {heads:3} {clusters:5} {dim:5}  {1e3 * statistics.median(stacked):9.2f} "
        f"{1e3 * statistics.median(plain):9.2f}  {ratio:5.2f}x {100 * share:5.0f} % {100 * plain_share:5.0f} %   "
        f"{losses[0]:8.4f} {losses[1]:8.4f}  {len(ours.blocks[0].student.outputs):3}",
        flush=True,
    )


def compare_blocks(kinds: Sequence[str], clusters: Sequence[int], dim: int, batch: int, rounds: int) -> None:
    """Milliseconds per step for every limit on a block's widest activation."""
    limits = [2**power for power in (17, 19, 20, 21, 22, 23, 26)]
    print("kind      H     C     D  " + "".join(f"{limit / 2**20:9.3g} MB" for limit in limits))
    for kind, count in product(kinds, clusters):
        trainers = []
        for limit in limits:
            train.BLOCK_BYTES = limit
            trainers.append(
                train.HeadTrainer([settings(kind, 16, count, batch)], training_set(dim, pick_device("cpu")))
            )
        batches = list(trainers[0].batches.bank_rows(0, rounds + 2))
        calls = [lambda n, step=trainer.step, rows=batches: step(n, rows[n]) for trainer in trainers]
        seconds = interleaved(calls, rounds)
        cells = "".join(f"{1e3 * statistics.median(own):9.2f} ms" for own in seconds)
        sizes = " ".join(str(len(trainer.blocks[0].student.outputs)) for trainer in trainers)
        print(f"{kind:9} {16:3} {count:5} {dim:5}  {cells}   heads a block: {sizes}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["linear", "published", "mlp-bn"])
    parser.add_argument("--heads", nargs="+", type=int, default=[1, 16, 50])
    parser.add_argument("--clusters", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--batch", type=int, default=512, help="pairs per step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", action="store_true", help="compare block sizes instead")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"products by {'the GPU' if device.type == 'cuda' else library()}")
    print(f"B = {args.batch}, medians of {args.rounds} interleaved rounds")
    if args.blocks:
        compare_blocks(args.kinds, args.clusters, args.dim, args.batch, args.rounds)
        return
    print("kind        H     C     D   stacked ms   loop ms  faster  of peak (loop)       loss (loop)  heads a block")
    for kind, heads, clusters in product(args.kinds, args.heads, args.clusters):
        with keep_freed_memory(device):  # as in training; the loop has it, too
            compare(kind, heads, clusters, args.dim, args.batch, args.rounds, device)


if __name__ == "__main__":
    main()
