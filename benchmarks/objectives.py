"""What a gradient by autograd costs beside the closed form: TEMI's loss in both, in turn, on the same batch.

python benchmarks/objectives.py [--rounds 20]
"""

import argparse
import platform
import time

import numpy as np
import torch
from torch import Tensor

from temi.pipeline.heads.objectives import Loss, PairBatch, alike, by_autograd
from temi.pipeline.registry import OBJECTIVES

HEADS, ROWS = 16, 1024


def temi(batch: PairBatch) -> Tensor:
    """The paper's loss as one would write it down."""
    agreement = batch.settings["beta"][:, None, None] * (batch.student + batch.partner) - batch.log_marginal[:, None]
    return -(batch.weight * agreement.logsumexp(-1)).mean(-1)


def draw(clusters: int) -> PairBatch:
    """A batch of random scores."""
    shape = (HEADS, ROWS, clusters)
    ones = torch.ones(HEADS)
    settings = {"beta": ones, "marginal_power": ones}
    teacher, uniform = torch.randn(shape).log_softmax(-1), torch.full((HEADS, clusters), 1 / clusters).log()
    exists = torch.ones(HEADS, clusters, dtype=torch.bool)
    return PairBatch(torch.randn(shape), teacher, uniform, torch.ones(HEADS, ROWS), exists, alike(exists), settings)


def milliseconds(loss: Loss, batch: PairBatch) -> float:
    """Of one loss with its gradient."""
    began = time.perf_counter()
    loss(batch)
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, medians of {rounds} pairs"
    )
    print("| C | closed form, ms | autograd, ms | ratio |\n|---|---|---|---|")
    for clusters in (10, 100, 1000):
        batch, by_hand, by_torch = draw(clusters), OBJECTIVES["temi"].loss, by_autograd(temi)
        times = np.array([[milliseconds(by_hand, batch), milliseconds(by_torch, batch)] for _ in range(rounds + 2)])[2:]
        closed, autograd = np.median(times, 0)
        print(f"| {clusters} | {closed:.1f} | {autograd:.1f} | {np.median(times[:, 1] / times[:, 0]):.1f} |")


if __name__ == "__main__":
    main()
