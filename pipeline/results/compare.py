"""Runs, trials and searches beside each other: what differs, and whether it is more than the seed.

Runs that differ in nothing but seeds are one choice of settings; what they were trained on, and with which files of
the user's own, counts among the settings. Choices are compared seed by seed: what two runs of one seed share, batches
and cuts, is then no part of their difference. Intervals are Student's, at 95 %.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError
from scipy.special import stdtrit

from temi.cache.words import counted
from temi.pipeline.config import SEEDS, Config, recorded_config
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.tables import TRAINED
from temi.pipeline.runs.records import (
    Record,
    SearchRecord,
    Setting,
    Training,
    TrialRecord,
    misfit,
    read_comparison,
    read_record,
    read_trials,
    short_settings,
)
from temi.pipeline.runs.run_folder import SEARCH, RunFolder, TrainedCache
from temi.pipeline.runs.search import SCORES
from temi.pipeline.runs.study import ended, score_of
from temi.pipeline.runs.trials import TRIALS, flat_settings, is_trials

DIGITS = 8  # of a digest that are shown
UNKNOWN = "not recorded"  # by a search of an older version
SHARE = 0.975  # of Student's distribution below the upper end of an interval
CLUSTERS = "heads.clusters"
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
    seeds : how many different ones they were trained with
    repeated : those of `runs` that share a seed, together; they count once, by their mean
    score, acc : of each, mean over seeds; `acc` where `temi evaluate` found labels
    behind : the score of the best choice of as many clusters minus this one's, over the seeds that both have
    verdict : best; worse, where the interval of `behind` is above zero; even, where it is not: nothing tells them
        apart, and of those that share the highest scores none is best; ? where one seed says nothing
    """

    settings: dict[str, Setting]
    runs: tuple[str, ...]
    seeds: int
    repeated: tuple[tuple[str, ...], ...] = ()
    score: Estimate
    behind: Estimate | None = None
    verdict: Literal["best", "worse", "even", "?"]
    acc: Estimate | None = None
    used_clusters: float


@dataclass(frozen=True)
class Run:
    """One trained model.

    Attributes
    ----------
    name : where it is
    settings : all of them by ``section.key``, and what it goes on from
    training : its label-free scores
    cache, digest, rows : the folder of its embeddings, and what was in there; "" and 0 where that is not known
    plugins : digests of files of the user's own by name; None where they are not known
    """

    name: str
    settings: dict[str, Setting]
    training: Training
    cache: str
    digest: str = ""
    rows: int = 0
    plugins: dict[str, str] | None = None
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
    runs = _with_sources(runs)
    apart = [name for name in _names(runs) if len({_text(run.settings.get(name)) for run in runs}) > 1]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_text([run.settings.get(name) for name in apart]), []).append(run)
    ordered = [groups[key] for key in sorted(groups)]  # of two that are equal, the order of `folders` chooses none
    scored = [_by_seed(group, lambda run: score_of(run.training, score)) for group in ordered]
    numbers = [str(group[0].settings.get(CLUSTERS)) for group in ordered]
    choices = []
    for group, values, number in zip(ordered, scored, numbers, strict=True):
        rivals = [others for others, count in zip(scored, numbers, strict=True) if count == number]
        choices.append(_choice(group, values, rivals, apart))
    if len(set(numbers)) > 1:  # one alone of its number is the best of nothing
        alone = {number for number in numbers if numbers.count(number) == 1}
        choices = [one.model_copy(update={"verdict": "?"}) if _number_of(one) in alone else one for one in choices]
    return sorted(choices, key=lambda choice: (choice.verdict != "best", -choice.score.mean))


def warning(choices: Sequence[Choice]) -> str:
    """What a reader must know who sees `choices` in one list; "" where there is nothing."""
    if len({_number_of(choice) for choice in choices}) < 2:
        return ""
    return (
        "numbers of clusters differ, and their label-free scores do not compare: best, behind and verdict are among "
        "choices of one heads.clusters alone"
    )


def _number_of(choice: Choice) -> str:
    return str(choice.settings.get(CLUSTERS))


def repeats(choices: Sequence[Choice]) -> list[str]:
    """A sentence for each choice that has one seed more than once: a run and its copy are no two seeds."""
    all_settings = [choice.settings for choice in choices]
    return [
        f"{'; '.join(' and '.join(names) for names in choice.repeated)}: each has the settings "
        f"({short_settings(choice.settings, all_settings)}) and the seed of the other, so they count as one run, by "
        "their mean"
        for choice in choices
        if choice.repeated
    ]


def left_out(folders: Sequence[Path]) -> list[str]:
    """A sentence for each of `folders` with trials that have no score, and why."""
    sentences = []
    for folder in folders:
        trials = _trials(folder)
        if missing := [trial for trial in trials if trial.training is None]:
            sentences.append(f"{folder}: {len(missing)} of {len(trials)} trials have no score: {ended(missing)}")
    return sentences


def _trials(folder: Path) -> Sequence[TrialRecord]:
    if (folder / SEARCH).exists():
        return read_record(SearchRecord, folder / SEARCH).trials
    return read_trials(folder / TRIALS) if is_trials(folder) else ()


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
        missing = left_out([folder])
        why = f" ({missing[0]})" if missing else ""
        raise UserError(
            f"{folder} holds no finished run, trials or search{why}; train with `temi train-heads` or search"
        )
    return runs


def _run(folder: Path, acc: float | None) -> Run:
    run = RunFolder(folder)
    begun = run.begun_with()
    came_from = {"from": begun.continues or "", "corrections": begun.corrections[:DIGITS]}
    settings = flat_settings(recorded_config(run.config)) | came_from
    cache: TrainedCache = begun.cache
    training = read_record(Training, run.training)
    return Run(str(folder), settings, training, cache.folder, cache.digest, cache.rows, begun.plugins, acc)


def _search(folder: Path) -> Iterator[Run]:
    record = read_record(SearchRecord, folder / SEARCH)
    try:
        shared = flat_settings(Config.model_validate(record.settings)) | {"from": "", "corrections": ""}
    except ValidationError as error:
        raise misfit(folder / SEARCH, error) from None
    for trial in record.trials:
        for seed, training in enumerate(trial.seeds):
            seeds = {"train.seed": seed, "start.seed": seed} if len(trial.seeds) > 1 else {}
            settings = shared | trial.settings | seeds
            name = f"{folder}/{trial.trial}"
            yield Run(name, settings, training, record.cache, record.digest, record.rows, record.plugins)


def _with_sources(runs: Sequence[Run]) -> list[Run]:
    """`runs` with two more settings: the cache, with what is in it where that has changed, and the plugins."""
    used = any(run.plugins for run in runs)  # what is not known matters only beside what is
    sources = [{"cache": _cache(run, runs)} | ({"plugins": _plugins(run)} if used else {}) for run in runs]
    return [replace(run, settings={**run.settings, **more}) for run, more in zip(runs, sources, strict=True)]


def _cache(run: Run, runs: Sequence[Run]) -> str:
    """The folder; where others of `runs` were trained on other embeddings in it, the rows as well, or the digest."""
    others = {(one.digest, one.rows) for one in runs if one.cache == run.cache}
    if len({digest for digest, _ in others}) == 1:
        return run.cache
    if not run.digest:
        return f"{run.cache}, rows {UNKNOWN}"
    alike = [digest for digest, rows in others if rows == run.rows]
    rows = f", {counted(run.rows, 'row')}" if run.rows else ""
    return f"{run.cache}{rows}" + (f" ({run.digest[:DIGITS]})" if len(alike) > 1 or not rows else "")


def _plugins(run: Run) -> str:
    """The files of the user's own, each with the digest that tells its versions apart."""
    if run.plugins is None:
        return UNKNOWN
    return " ".join(f"{name} ({digest[:DIGITS]})" for name, digest in sorted(run.plugins.items())) or "none"


def _accuracy(folder: Path) -> dict[str, float]:
    """ACC on the training rows by method, as `temi evaluate` left it; nothing where it was not run or had no labels."""
    rows = (row for part in read_comparison(folder) if part.name.startswith(TRAINED) for row in part.rows)
    return {row.method: row.acc for row in rows if row.kind == "clustering" and row.acc is not None}


def _names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.settings if name not in SEEDS))


def _text(value: object) -> str:
    return json.dumps(value)


def _by_seed(group: Sequence[Run], value: Callable[[Run], float | None]) -> dict[Seed, float]:
    """Seed -> the mean of `value` over its runs, of those that have one."""
    found: dict[Seed, list[float]] = {}
    for run in group:
        if (own := value(run)) is not None:
            found.setdefault(run.seed, []).append(own)
    return {seed: _mean(values) for seed, values in found.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # exact: the same in any order


def _choice(
    group: Sequence[Run],
    own: dict[Seed, float],
    rivals: Sequence[dict[Seed, float]],
    apart: Sequence[str],
) -> Choice:
    """A choice of settings beside the best of `rivals`, those of its number of clusters, itself among them."""
    best = max(rivals, key=lambda values: _mean(list(values.values())))
    first: Literal["best", "even"] = "best" if rivals.count(best) == 1 else "even"
    behind = None if own == best else _estimate([best[seed] - own[seed] for seed in own.keys() & best.keys()])
    score = _estimate(list(own.values()))
    assert score is not None  # a group has a run
    of_seed = [tuple(run.name for run in group if run.seed == seed) for seed in own]
    return Choice(
        settings={name: group[0].settings.get(name) for name in apart},
        runs=tuple(run.name for run in group),
        seeds=len(own),
        repeated=tuple(names for names in of_seed if len(names) > 1),
        score=score,
        behind=behind,
        verdict=first if own == best else _verdict(behind),
        acc=_estimate(list(_by_seed(group, lambda run: run.acc).values())),
        used_clusters=_mean(list(_by_seed(group, lambda run: run.training.used_clusters).values())),
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
    return Estimate(mean=_mean(values), margin=margin)


def shown(estimate: Estimate | None, scale: float = 1, digits: int = 3) -> str:
    """An estimate as ``0.912 ±0.004``."""
    if estimate is None:
        return ""
    margin = "" if estimate.margin is None else f" ±{scale * estimate.margin:.{digits}f}"
    return f"{scale * estimate.mean:.{digits}f}{margin}"


def cells(choice: Choice, beside: Sequence[Choice] = ()) -> dict[str, str]:
    """What a table shows of a choice `beside` others, by heading."""
    return {
        "": "*" if choice.verdict == "best" else "",
        "settings": short_settings(choice.settings, [other.settings for other in beside]),
        "seeds": str(choice.seeds),
        "score": shown(choice.score),
        "behind": shown(choice.behind),
        "verdict": choice.verdict,
        "ACC": shown(choice.acc, 100, 1),
    }


def as_markdown(choices: Sequence[Choice]) -> str:
    """The table in Markdown."""
    rows = [cells(choice, choices) for choice in choices]
    lines = [" | ".join(row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in [" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *lines])


def as_csv(choices: Sequence[Choice]) -> str:
    """A line a choice, a column a setting, mean and margin apart."""
    table = []
    for choice in choices:
        row: dict[str, object] = {**choice.settings, "seeds": choice.seeds, "verdict": choice.verdict}
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
