"""What the loss lab costs: from an idea to a number, and a search beside calls one after another.

    python benchmarks/lab.py second CACHE [--clusters 10] [--heads 16] [--rounds 3]
    python benchmarks/lab.py search CACHE [--clusters 10] [--heads 4] [--steps 400] [--trials 64] [--rounds 1]
    python benchmarks/lab.py regret CACHE [--clusters 10] [--heads 4] [--steps 400] [--trials 64]
    python benchmarks/lab.py edit CACHE --plugin FILE.py --set objective.name=NAME [--rounds 3]
    python benchmarks/lab.py study CACHE [--trials 1000]

`second`: whole processes of `temi train-heads` with another beta each, on a cache that one call has prepared, beside
its training steps alone. `search`: `temi search` of so many trials, beside single calls; a few are timed and counted
for all. `regret`: how far the best of every sampler's study stays behind the best of a whole grid, by the score that is
searched. `edit`: a plugin is changed, trained with, and scores against labels are printed. `study`: a study of so many
trials that were told made-up scores is opened. Seconds on the clock and of the processor; sides that are compared are
interleaved, ratios are those of pairs.
"""

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import torch

from temi.cache import EmbeddingCache
from temi.pipeline.config import load_config
from temi.pipeline.device import keep_freed_memory
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.runs.checks import training_rows
from temi.pipeline.runs.records import Training
from temi.pipeline.runs.search import SAMPLERS, TRAINED, Search, distribution, kept_apart, open_study, write_results
from temi.pipeline.runs.space import DEFAULT_SPACE, read_space

TEMI = [sys.executable, "-c", "from temi.cli import app; app()"]
SINGLE_CALLS = 4  # of a round of `search`, timed and multiplied
GRID = {  # of `regret`, over the ranges of configs/search.toml
    "objective.beta": (0.6, 1.0, 1.4),
    "objective.marginal_power": (0.5, 1.0, 1.5),
    "objective.teacher_temperature": (0.04, 0.08, 0.12),
    "optimizer.lr": (3e-4, 1e-3, 3e-3, 1e-2),
}


def used() -> np.ndarray:
    """On the clock, of this process, and of its finished children."""
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), time.process_time() + child.ru_utime + child.ru_stime])


def timed(*arguments: str) -> np.ndarray:
    """Seconds of a whole `temi`."""
    began = used()
    subprocess.run([*TEMI, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return used() - began


def steps_alone(cache: EmbeddingCache, settings: list[str]) -> np.ndarray:
    """Seconds of the training steps, with the data in memory."""
    config = load_config(None, settings)
    features = Features.of_cache(cache, training_rows(cache)).distinct()
    trainer = HeadTrainer([config], load_training_set(features, config))
    began = used()
    with keep_freed_memory(trainer.device):
        for number, rows in enumerate(trainer.batches.bank_rows(0, trainer.steps)):
            trainer.step(number, rows)
    return used() - began


def options(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def second_call(arguments: argparse.Namespace, work: Path) -> None:
    """A call with another beta, against its steps."""
    shared = [f"heads.clusters={arguments.clusters}", f"heads.count={arguments.heads}", "train.tensorboard=false"]
    cache, call = EmbeddingCache.open(arguments.cache), ["train-heads", str(arguments.cache), *options(shared)]
    first = timed(*call, "--out", str(work / "first"))
    rounds = []
    for number in range(arguments.rounds):
        beta = f"objective.beta={0.7 + 0.01 * number:.2f}"
        whole = timed(*call, *options([beta]), "--out", str(work / f"run-{number}"))
        rounds.append([whole, steps_alone(cache, [*shared, beta])])
    whole, steps = np.median(rounds, axis=0)
    ratio = np.median([one / other for one, other in rounds], axis=0)
    print(f"first call {first[0]:.1f} s, {first[1]:.1f} CPU s (whatever the cache kept before)")
    print(f"second call {whole[0]:.1f} s, {whole[1]:.1f} CPU s; its steps alone {steps[0]:.1f} s, {steps[1]:.1f} CPU s")
    print(f"ratio of pairs: {ratio[0]:.2f} on the clock, {ratio[1]:.2f} of the processor (n = {len(rounds)})")


def short(arguments: argparse.Namespace) -> list[str]:
    """Settings of the trials of a search."""
    shared = [f"heads.clusters={arguments.clusters}", f"heads.count={arguments.heads}"]
    return [*shared, f"train.min_steps={arguments.steps}", "train.epochs=0", "train.tensorboard=false"]


def search(arguments: argparse.Namespace, work: Path) -> None:
    """A search, against as many single calls on the same cache."""
    shared, rounds = short(arguments), []
    for number in range(arguments.rounds):
        study = ["--trials", str(arguments.trials), "--out", str(work / f"study-{number}")]
        whole = timed("search", str(arguments.cache), *study, *options(shared))
        single = (
            sum(
                timed(
                    "train-heads",
                    str(arguments.cache),
                    *options([*shared, f"objective.beta={0.6 + 0.1 * call}"]),
                    "--out",
                    str(work / f"run-{number}-{call}"),
                )
                for call in range(SINGLE_CALLS)
            )
            / SINGLE_CALLS
        )
        rounds.append([whole, single * arguments.trials])
    whole, many = np.median(rounds, axis=0)
    ratio = np.median([one / other for one, other in rounds], axis=0)
    print(f"search {whole[0]:.1f} s, {whole[1]:.1f} CPU s; single calls {many[0]:.1f} s, {many[1]:.1f} CPU s")
    print(f"ratio: {ratio[0]:.3f} on the clock, {ratio[1]:.3f} of the processor (n = {len(rounds)})")


def regret(arguments: argparse.Namespace, work: Path) -> None:
    """The best score of every sampler beside that of the grid."""
    call = [str(arguments.cache), *options(short(arguments))]
    axes = [word for name, values in GRID.items() for word in ("--grid", f"{name}={','.join(map(str, values))}")]
    spent = timed("train-heads", *call, *axes, "--out", str(work / "grid"))
    scores = [trial["head_agreement"] for trial in json.loads((work / "grid/trials.json").read_text())]
    print(f"grid: {len(scores)} trials, best {max(scores):.4f}, median {np.median(scores):.4f}, {spent[1]:.0f} CPU s")
    for sampler in SAMPLERS:
        study, trials = work / sampler, ["--trials", str(arguments.trials), "--sampler", sampler]
        spent = timed("search", *call, *trials, "--out", str(study))
        best = json.loads((study / "search.json").read_text())["trials"][0]["training"]["head_agreement"]
        found = f"best {best:.4f}, regret {max(scores) - best:+.4f}"
        print(f"{sampler}: {arguments.trials} trials, {found}, {spent[1]:.0f} CPU s", flush=True)


def edit(arguments: argparse.Namespace, work: Path) -> None:
    """From a changed plugin to the table of `temi evaluate`."""
    plugin, rounds = work / arguments.plugin.name, []
    for number in range(arguments.rounds + 1):
        plugin.write_text(f"{arguments.plugin.read_text()}\n# edit {number}\n")
        settings = options([f"heads.clusters={arguments.clusters}", *arguments.set, "train.tensorboard=false"])
        run = ["--out", str(work / f"run-{number}"), "--plugin", str(plugin)]
        trained = timed("train-heads", str(arguments.cache), *settings, *run)
        rounds.append([trained, timed("evaluate", str(work / f"run-{number}"), "--baselines", "none")])
    trained, scored = np.median(rounds[1:], axis=0)  # the first made what is kept
    print(f"train-heads {trained[0]:.1f} s, {trained[1]:.1f} CPU s; evaluate {scored[0]:.1f} s, {scored[1]:.1f} CPU s")


def study(arguments: argparse.Namespace, work: Path) -> None:
    """Open a study of many trials, and say how it did: in this process, and by the command that finds nothing owed."""
    cache = EmbeddingCache.open(arguments.cache)
    wanted = Search(read_space(DEFAULT_SPACE), overrides=short(arguments), trials=arguments.trials, sampler="random")
    told = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    for number in range(arguments.trials):  # in memory first: one transaction a trial instead of eight
        trial = told.ask({name: distribution(values) for name, values in wanted.space.items()})
        trial.set_user_attr(TRAINED, [made_up(number / arguments.trials, arguments).model_dump(mode="json")])
        told.tell(trial, number / arguments.trials)
    open_study(work, "sqlite", kept_apart(cache, wanted, ())).add_trials(told.trials)
    began = used()
    opened = open_study(work, "sqlite", kept_apart(cache, wanted, ()))
    record = write_results(opened, cache, wanted, work)
    spent = used() - began
    print(f"{len(record.trials)} trials: opened and written in {spent[0]:.2f} s, {spent[1]:.2f} CPU s")
    call = ["search", str(arguments.cache), *options(short(arguments)), "--trials", str(arguments.trials)]
    whole = timed(*call, "--out", str(work))
    shown = timed("compare", str(work))
    print(f"temi search with nothing owed {whole[0]:.1f} s; temi compare {shown[0]:.1f} s, {shown[1]:.1f} CPU s")


def made_up(score: float, arguments: argparse.Namespace) -> Training:
    """Scores of a trial that never was."""
    sizes = {"clusters": arguments.clusters, "used_clusters": arguments.clusters, "effective_clusters": 9.0}
    scores = dict.fromkeys(("mean_confidence", "head_agreement", "stability", "neighbor_consistency"), score)
    return Training(
        **sizes, **scores, linear_accuracy=score, smallest_cluster=1, largest_cluster=9, steps=1, images=9, seconds=0.0,
        trials_in_pass=1, skipped_steps=0, head_loss=(0.0,), selected_head=0,
    )  # fmt: skip


WHAT = {"second": second_call, "search": search, "regret": regret, "edit": edit, "study": study}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("cache", type=Path)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--plugin", type=Path)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    work = Path(tempfile.mkdtemp())
    try:
        WHAT[arguments.what](arguments, work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
