"""Many trials on one cache: a list or a grid of settings, grouped into passes, trained, and compared in one table.

::

    OUT/trial-000/     the run folder of the first trial, as `train_heads` leaves it
    OUT/trials.json    what the trials differ in, and their label-free scores
    OUT/merge.json     where they differ in the number of clusters: how the clusters of one join into those of another
    OUT/result.json    after `temi evaluate OUT`: their scores against the labels
"""

import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from temi.cache import EmbeddingCache
from temi.cache.schema import NEIGHBOR_FOLDER
from temi.cache.words import counted
from temi.pipeline.config import Config, asked, flatten, load_config, per_trial, read_toml
from temi.pipeline.errors import UserError
from temi.pipeline.features.constraints import Constraints
from temi.pipeline.heads.objectives import Loss
from temi.pipeline.plugins import Plugin
from temi.pipeline.registry import OBJECTIVES
from temi.pipeline.runs.checks import check_settings, training_rows
from temi.pipeline.runs.joins import merge_tree
from temi.pipeline.runs.mirror import mirror_of
from temi.pipeline.runs.records import (
    Level,
    MergeTree,
    Setting,
    Training,
    TrialRecord,
    read_record,
    read_trials,
    write_record,
    write_trials,
)
from temi.pipeline.runs.run_folder import STUDY, RunFolder, refuse_single_run
from temi.pipeline.runs.train import read_assignments, train_pass

TRIALS, MERGES = "trials.json", "merge.json"
LISTED = 6  # trials named where one is to be chosen


def plan_trials(file: Path | None, grid: Iterable[str], base: Path | None, overrides: Sequence[str]) -> list[Config]:
    """The settings of every trial: each ``[[trial]]`` of `file`, times each combination of the grids.

    Parameters
    ----------
    file : TOML with ``[[trial]]`` tables, a ``[grid]`` table of lists, or both
    grid : ``section.key=value,value,...``; the last varies fastest
    base, overrides : the settings that trials start from, as for `load_config`

    Raises
    ------
    UserError
        A file, key or value that is none, or two trials that are the same.
    """
    listed, axes = _read_trials(file) if file else ([[]], [])
    own = [_grid_axis(text) for text in grid]
    grids = [*([f"[grid] in {file}"] if axes else []), *(["--grid"] if own else [])]
    configs = []
    for number, trial in enumerate(listed, 1):
        where = " or ".join([*([f"[[trial]] {number} in {file}"] if trial else []), *grids])
        configs += [_config(base, overrides, [*trial, *point], where) for point in product(*axes, *own)]
    for name in asked(text for texts in (*listed, *axes, *own) for text in texts):
        if name.startswith("embed."):
            raise UserError(
                f"{name} is a setting of stage one, and trials share the cache that it made; embed a cache for each "
                "value, train on each, and give the runs to temi compare"
            )
    for number, config in enumerate(configs):
        if config in configs[:number]:
            raise UserError(f"trials {configs.index(config)} and {number} have the same settings; remove one of them")
    return configs


def _config(base: Path | None, overrides: Sequence[str], trial: Sequence[str], where: str) -> Config:
    """The settings of a trial, whose own are given by `where`: a mistake in them is none of --set."""
    with mistakes_in(where, base, overrides):
        return load_config(base, [*overrides, *trial])


@contextmanager
def mistakes_in(where: str, base: Path | None, overrides: Sequence[str]) -> Iterator[None]:
    """Inside, a mistake in settings stands in `where`, if that is named, and not in --set; but for one in those that
    trials start from."""
    try:
        yield
    except UserError as error:
        if not where or _mistake(base, overrides) == str(error):
            raise
        raise UserError(str(error).replace("--set", where, 1)) from None


def _mistake(base: Path | None, overrides: Sequence[str]) -> str:
    """What is wrong with the settings that trials start from; "" where nothing is."""
    try:
        load_config(base, overrides)
    except UserError as error:
        return str(error)
    return ""


def as_overrides(file: Path) -> list[str]:
    """The settings in a TOML file, as ``--set`` takes them."""
    pairs = flatten(tomllib.loads(file.read_text(encoding="utf-8-sig")))
    return [_override(name, value, f"in {file}") for name, value in pairs]


def _override(name: str, value: Any, where: str) -> str:
    """A setting as ``--set`` takes it; UserError where it is of a kind that no setting has, such as a date."""
    try:
        return f"{name}={json.dumps(value)}"
    except TypeError:
        raise UserError(
            f"setting {name} {where} must be a number, a text, true or false, or a list of those, got {value}; "
            "a text stands in quotes"
        ) from None


def _read_trials(file: Path) -> tuple[list[list[str]], list[list[str]]]:
    table = read_toml(file, "trials file", "--trials")
    trials, grid = table.pop("trial", [{}]), table.pop("grid", {})
    tables = isinstance(trials, list) and all(isinstance(trial, dict) for trial in trials) and isinstance(grid, dict)
    if table or not tables or not (trials and (grid or trials != [{}])):
        raise UserError(
            f"trials file {file} must hold [[trial]] tables or a [grid] table and nothing else, "
            "e.g. [[trial]] with objective.beta = 0.5, or [grid] with objective.beta = [0.5, 0.6]"
        )
    axes = [(name, values) for name, values in flatten(grid)]
    for name, values in axes:
        if not isinstance(values, list) or not values:
            raise UserError(f"[grid] {name} in {file} must be a list of values, got {values!r}")
    return (
        [
            [_override(name, value, f"in [[trial]] {number} in {file}") for name, value in flatten(trial)]
            for number, trial in enumerate(trials, 1)
        ],
        [[_override(name, value, f"in [grid] in {file}") for value in values] for name, values in axes],
    )


def _grid_axis(text: str) -> list[str]:
    name, equals, values = text.partition("=")
    if not (equals and values):
        raise UserError(f"--grid {text!r} is not of the form section.key=value,value, e.g. objective.beta=0.5,0.6")
    return [f"{name}={value}" for value in values.split(",")]


def group_trials(configs: Sequence[Config]) -> list[list[int]]:
    """Positions of the trials of each pass, in the order of their first.

    Trials share a pass if they agree in all settings but those marked PER_TRIAL, and if their objectives have one loss.
    """
    groups: dict[tuple[str, Loss], list[int]] = {}
    for position, config in enumerate(configs):
        shared = config.model_dump_json(exclude=dict(per_trial(config)))
        groups.setdefault((shared, OBJECTIVES[config.objective.name].loss), []).append(position)
    return list(groups.values())


def flat_settings(config: Config) -> dict[str, Setting]:
    """Every setting of both stages by ``section.key``."""
    flat = flatten(config.model_dump(mode="json"))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in flat}


def with_seeds(configs: Sequence[Config], count: int) -> list[Config]:
    """Every trial with seeds 0, 1, ... of its heads and its cuts; batches stay the same, so that a pass takes all."""
    return [
        config.model_copy(
            update={name: getattr(config, name).model_copy(update={"seed": seed}) for name in ("train", "start")}
        )
        for config in configs
        for seed in range(count)
    ]


def differences(configs: Sequence[Config]) -> list[dict[str, Setting]]:
    """For each trial its values of the settings in which not all trials agree, by ``section.key``."""
    flat = [flat_settings(config) for config in configs]
    names = dict.fromkeys(name for settings in flat for name in settings)  # a plugin's own are not in all of them
    apart = [name for name in names if any(settings.get(name) != flat[0].get(name) for settings in flat)]
    return [{name: settings[name] for name in apart if name in settings} for settings in flat]


def train_trials(
    cache: EmbeddingCache,
    configs: Sequence[Config],
    out: Path,
    *,
    overwrite: bool = False,
    plugins: Sequence[Plugin] = (),
    told: Constraints | None = None,
    on: str = "",
) -> list[TrialRecord]:
    """Train all trials, a pass per group, into ``OUT/trial-NNN``; finished ones are kept, interrupted ones resumed.

    `on` names a Ray cluster whose nodes train them, in more passes: ``ray`` or ``ray:ADDRESS``. They see the cache and
    `out` by the same paths. What is returned stands in ``OUT/trials.json``, too.
    """
    refuse_single_run(out, "the trials")
    if any((out / name).exists() for name in STUDY):
        raise UserError(f"{out} is the folder of a search; choose another --out for the trials")
    for config in configs:
        images = len(training_rows(cache, config.train.split))
        check_settings(config, images, cache.views, str(cache.folder), unreadable=bool(cache.failures))
    runs = [RunFolder(out / f"trial-{position:03d}") for position in range(len(configs))]
    groups = group_trials(configs)
    if on:
        from temi.pipeline.runs.ray_trials import Job, train_groups

        if overwrite:
            for run in runs:
                with run.claim():
                    run.remove()
        job = Job.of(cache, out, plugins)
        train_groups(on, job, configs, [run.folder.name for run in runs], groups, told)
        if mirror := mirror_of(out):
            mirror.pull()
    else:
        for group in groups:
            chosen = [configs[i] for i in group], [runs[i] for i in group]
            train_pass(cache, *chosen, out / NEIGHBOR_FOLDER, overwrite=overwrite, plugins=plugins, told=told)
    trials = [
        TrialRecord(
            trial=run.folder.name,
            settings=settings,
            training=None if run.stopped else read_record(Training, run.training),
            stopped=run.stopped,
        )
        for run, settings in zip(runs, differences(configs), strict=True)
    ]
    write_trials(out / TRIALS, trials)
    write_record(out / MERGES, merge_trees(out, trials))
    return trials


def merge_trees(folder: Path, trials: Sequence[TrialRecord]) -> list[MergeTree]:
    """How clusters join from each number of clusters to the next lower one, as ``OUT/merge.json`` holds it.

    Trials that agree in all settings but the number of clusters make a tree.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.training is not None:
            groups.setdefault(json.dumps(_without_clusters(trial)), []).append(trial)
    trees = []
    for group in groups.values():
        levels = sorted((Level(trial=t.trial, clusters=t.training.clusters) for t in group if t.training), key=_finest)
        if len(levels) > 1:
            clusters = [_clusters(folder / level.trial) for level in levels]
            trees.append(merge_tree(_without_clusters(group[0]), levels, clusters))
    return trees


def _clusters(trial: Path) -> Int64[np.ndarray, " n"]:
    cluster: Int64[np.ndarray, " n"] = read_assignments(trial)["cluster"].to_numpy().astype("int64")
    return cluster


def _finest(level: Level) -> int:
    return -level.clusters


def _without_clusters(trial: TrialRecord) -> dict[str, Setting]:
    return {name: value for name, value in trial.settings.items() if name != "heads.clusters"}


def is_trials(folder: Path) -> bool:
    """Whether `folder` was written by `train_trials`."""
    return (folder / TRIALS).exists()


def list_trained(folder: Path) -> list[TrialRecord]:
    """The trials in `folder` that were trained to their end."""
    return [trial for trial in read_trials(folder / TRIALS) if trial.training is not None]


def choose_among(folder: Path) -> str:
    """What a command says that takes one run and was given a folder of trials."""
    trials = list_trained(folder)
    named = [
        f"{folder / trial.trial} ({', '.join(f'{name}={value}' for name, value in trial.settings.items())})"
        for trial in trials[:LISTED]
    ]
    more = [f"{len(trials) - LISTED} more, see {folder / TRIALS}"] if len(trials) > LISTED else []
    return f"{counted(len(trials), 'trial')}; give one of them: {', '.join([*named, *more])}"
