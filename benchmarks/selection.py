"""Which score without labels tells good trials from bad ones: rank correlation with ACC over 48 trials of each set.

    python benchmarks/selection.py CACHE... [--heads 4] [--steps 600]

Trials differ in start, beta, marginal power, temperature and learning rate. Labels are read after all scores are.
Prints Spearman's correlation per set, the mean over sets, and the ACC of the trial that each score would choose.
"""

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from temi.cache import EmbeddingCache
from temi.pipeline.config import load_config
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.runs.checks import training_rows
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.train import assign
from temi.pipeline.runs.trials import train_trials

SCORES = (
    "loss",
    "mean_confidence",
    "head_agreement",
    "stability",
    "neighbor_consistency",
    "linear_accuracy",
    "used_clusters",
    "effective_clusters",
)
GRID = {
    "start.kind": ("layouts", "random"),
    "objective.beta": (0.6, 1.0),
    "objective.marginal_power": (0.0, 1.0),
    "objective.student_temperature": (0.05, 0.1, 0.2),
    "optimizer.lr": (5e-4, 5e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.heads} heads a trial")
    found = {folder.name: measure(folder, arguments.heads, arguments.steps) for folder in arguments.caches}
    print_tables(found)


def measure(folder: Path, heads: int, steps: int) -> list[dict[str, Any]]:
    """Scores and ACC of every trial on one cache."""
    cache = EmbeddingCache.open(folder)
    rows = training_rows(cache)
    label = cache.labels[rows]
    base = [f"heads.clusters={len(np.unique(label))}", f"heads.count={heads}", f"train.min_steps={steps}"]
    base += ["train.epochs=0", "train.tensorboard=false"]
    points = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    configs = [load_config(None, [*base, *(f"{key}={value}" for key, value in point.items())]) for point in points]
    with tempfile.TemporaryDirectory() as out:
        trials = train_trials(cache, configs, Path(out))
        trained: list[dict[str, Any]] = []
        for trial in trials:
            if trial.training is None:
                continue
            model = ClusterModel.load(Path(out) / trial.trial / "heads.safetensors")
            acc = hungarian_accuracy(label, assign(model, cache.embedding()[rows])[0])
            trained.append({**trial.training.model_dump(), "loss": -trial.training.loss, "acc": acc})
    return trained


def print_tables(found: dict[str, list[dict[str, Any]]]) -> None:
    print(f"\nSpearman's rank correlation with ACC\n\n| score | {' | '.join(found)} | mean |")
    print("|---" * (len(found) + 2) + "|")
    for score in SCORES:
        values = [correlation(trials, score) for trials in found.values()]
        cells = " | ".join("" if np.isnan(value) else f"{value:+.2f}" for value in values)
        print(f"| {score.replace('_', ' ')} | {cells} | {np.nanmean(values):+.2f} |")
    print(f"\nACC of the trial chosen\n\n| by | {' | '.join(found)} | mean |\n{'|---' * (len(found) + 2)}|")
    for score in SCORES:
        print_choices(score, [max(trials, key=lambda trial: trial[score])["acc"] for trials in found.values()])
    for name, choose in (("best", np.max), ("median trial", np.median), ("worst", np.min)):
        print_choices(name, [float(choose([trial["acc"] for trial in trials])) for trials in found.values()])


def correlation(trials: list[dict[str, Any]], score: str) -> float:
    values = [trial[score] for trial in trials]
    if len(set(values)) == 1:
        return float("nan")
    return float(spearmanr(values, [trial["acc"] for trial in trials]).statistic)


def print_choices(name: str, accuracies: list[float]) -> None:
    cells = " | ".join(f"{100 * acc:.1f}" for acc in accuracies)
    print(f"| {name.replace('_', ' ')} | {cells} | {100 * np.mean(accuracies):.1f} |")


if __name__ == "__main__":
    main()
