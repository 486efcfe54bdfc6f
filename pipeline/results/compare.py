"""Runs, trials and searches beside each other: what differs, and whether it is more than the seed.

Runs whose settings differ in nothing but seeds are one choice of settings. Choices are compared seed by seed: what two
runs of one seed share, batches and cuts, is then no part of their difference. Intervals are Student's, at 95 %.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from temi.pipeline.config import Config, recorded_config
from temi.pipeline.errors import UserError
from temi.pipeline.runs.records import (
    Record,
    SearchRecord,
    Setting,
    Training,
    read_comparison,
    read_record,
    read_trials,
    short_settings,
)
from temi.pipeline.runs.run_folder import RunFolder
from temi.pipeline.runs.search import SCORES, SEARCH, score_of
from temi.pipeline.runs.trials import TRIALS, flat_settings, is_trials

SEEDS = ("train.seed", "start.seed", "pairs.seed")
SHARE = 0.975  # of Student's distribution below the upper end of an interval
Seed = tuple[Setting, ...]


class Estimate(Record):
    """A mean over seeds, and half of its 95 % interval; None where there is a single seed."""

    mean: float
    margin: float | None = None


class Choice(Record):
    """Settings that were trained with one seed or several.

    Attributes
    ----------
    settings : those in which the choices differ
    runs : their folders and trials
    score, acc : of each, mean over seeds; `acc` where `temi evaluate` found labels
    behind : the best choice's score minus this one's, over the seeds that both have
    verdict : best; worse, where the interval of `behind` is above zero; even, where it is not: nothing tells them
        apart; ? where one seed says nothing
    """

    settings: dict[str, Setting]
    runs: tuple[str, ...]
    score: Estimate
    behind: Estimate | None = None
    verdict: Literal["best", "worse", "even", "?"]
    acc: Estimate | None = None
    used_clusters: float


@dataclass(frozen=True)
class Run:
    """One trained model: where it is, all its settings by ``section.key``, its label-free scores, and its ACC."""

    name: str
    settings: dict[str, Setting]
    training: Training
    acc: float | None = None

    @property
    def seed(self) -> Seed:
        """What runs are paired by."""
        return tuple(self.settings.get(name) for name in SEEDS)


def compare(folders: Sequence[Path], score: str = SCORES[0]) -> list[Choice]:
    """All choices of settings in `folders`, the best first.

    Raises
    ------
    UserError
        A folder holds nothing that was trained, or there is no such score.
    """
    if score not in SCORES:
        raise UserError(f"there is no score {score!r}; choose one of {', '.join(SCORES)}")
    places = {folder.resolve(): folder for folder in folders}  # a folder that is named twice counts once
    runs = [run for folder in places.values() for run in read_runs(folder)]
    apart = [name for name in _names(runs) if len({_text(run.settings.get(name)) for run in runs}) > 1]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_text([run.settings.get(name) for name in apart]), []).append(run)
    scored = [{run.seed: score_of(run.training, score) for run in group} for group in groups.values()]
    best = max(scored, key=lambda values: float(np.mean(list(values.values()))))
    choices = [_choice(group, values, best, apart) for group, values in zip(groups.values(), scored, strict=True)]
    return sorted(choices, key=lambda choice: (choice.verdict != "best", -choice.score.mean))


def warning(choices: Sequence[Choice]) -> str:
    """What a reader must know who sees `choices` in one list; "" where there is nothing."""
    counts = {str(choice.settings.get("heads.clusters")) for choice in choices}
    if len(counts) < 2:
        return ""
    return (
        "numbers of clusters differ, and their label-free scores do not compare: trust best, behind and verdict among "
        "choices of one heads.clusters alone"
    )


def read_runs(folder: Path) -> list[Run]:
    """What was trained to its end in `folder`: a run, trials, or a search."""
    if (folder / SEARCH).exists():
        runs = list(_search(folder))
    elif is_trials(folder):
        accuracy = _accuracy(folder)
        trained = [trial for trial in read_trials(folder / TRIALS) if trial.training]
        runs = [_run(folder / trial.trial, accuracy.get(trial.name)) for trial in trained]
    elif RunFolder(folder).finished:
        runs = [_run(folder, next(iter(_accuracy(folder).values()), None))]
    else:
        runs = []
    if not runs:
        raise UserError(f"{folder} holds no finished run, trials or search; train with `temi train-heads` or search")
    return runs


def _run(folder: Path, acc: float | None) -> Run:
    run = RunFolder(folder)
    settings = flat_settings(recorded_config(run.config)) | {"cache": run.begun_with().cache.folder}
    return Run(str(folder), settings, read_record(Training, run.training), acc)


def _search(folder: Path) -> Iterator[Run]:
    record = read_record(SearchRecord, folder / SEARCH)
    shared = flat_settings(Config.model_validate(record.settings)) | {"cache": record.cache}
    for trial in record.trials:
        for seed, training in enumerate(trial.seeds):
            seeds = {"train.seed": seed, "start.seed": seed} if len(trial.seeds) > 1 else {}
            yield Run(f"{folder}/{trial.trial}", shared | trial.settings | seeds, training)


def _accuracy(folder: Path) -> dict[str, float]:
    """ACC on the training rows by method, as `temi evaluate` left it; nothing where it was not run or had no labels."""
    rows = (row for part in read_comparison(folder)[:1] for row in part.rows)
    return {row.method: row.acc for row in rows if row.kind == "clustering" and row.acc is not None}


def _names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.settings if name not in SEEDS))


def _text(value: object) -> str:
    return json.dumps(value)


def _choice(group: Sequence[Run], own: dict[Seed, float], best: dict[Seed, float], apart: Sequence[str]) -> Choice:
    behind = None if own is best else _estimate([best[seed] - own[seed] for seed in own.keys() & best.keys()])
    acc = [run.acc for run in group if run.acc is not None]
    score = _estimate(list(own.values()))
    assert score is not None  # a group has a run
    return Choice(
        settings={name: group[0].settings.get(name) for name in apart},
        runs=tuple(run.name for run in group),
        score=score,
        behind=behind,
        verdict="best" if own is best else _verdict(behind),
        acc=_estimate(acc),
        used_clusters=float(np.mean([run.training.used_clusters for run in group])),
    )


def _verdict(behind: Estimate | None) -> Literal["worse", "even", "?"]:
    if behind is None or behind.margin is None:
        return "?"
    return "worse" if behind.mean > behind.margin else "even"


def _estimate(values: Sequence[float]) -> Estimate | None:
    """mean +- t s / sqrt(n), t the quantile of Student's distribution with n - 1 degrees of freedom."""
    n = len(values)
    if not n:
        return None
    margin = float(stdtrit(n - 1, SHARE) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(mean=float(np.mean(values)), margin=margin)


def shown(estimate: Estimate | None, scale: float = 1, digits: int = 3) -> str:
    """An estimate as ``0.912 ±0.004``."""
    if estimate is None:
        return ""
    margin = "" if estimate.margin is None else f" ±{scale * estimate.margin:.{digits}f}"
    return f"{scale * estimate.mean:.{digits}f}{margin}"


def cells(choice: Choice) -> dict[str, str]:
    """What a table shows of a choice, by heading."""
    return {
        "": "*" if choice.verdict == "best" else "",
        "settings": short_settings(choice.settings),
        "seeds": str(len(choice.runs)),
        "score": shown(choice.score),
        "behind": shown(choice.behind),
        "verdict": choice.verdict,
        "ACC": shown(choice.acc, 100, 1),
    }


def as_markdown(choices: Sequence[Choice]) -> str:
    """The table in Markdown."""
    rows = [cells(choice) for choice in choices]
    lines = [" | ".join(row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in [" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *lines])


def as_csv(choices: Sequence[Choice]) -> str:
    """A line a choice, a column a setting, mean and margin apart."""
    table = []
    for choice in choices:
        row: dict[str, object] = {**choice.settings, "seeds": len(choice.runs), "verdict": choice.verdict}
        for name in ("score", "behind", "acc"):
            estimate = getattr(choice, name) or Estimate(mean=math.nan)
            row |= {name: _number(estimate.mean), f"{name}_margin": _number(estimate.margin)}
        table.append(row | {"used_clusters": choice.used_clusters, "runs": " ".join(choice.runs)})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _number(value: float | None) -> float | str:
    return "" if value is None or math.isnan(value) else value


def as_json(choices: Sequence[Choice]) -> str:
    """All of it."""
    return json.dumps([choice.model_dump(mode="json") for choice in choices], indent=1, ensure_ascii=False)
