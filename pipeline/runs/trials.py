"""Many trials on one cache: a list or a grid of settings, grouped into passes, trained, and compared in one table.

::

    OUT/trial-000/     the run folder of the first trial, as `train_heads` leaves it
    OUT/trials.json    what the trials differ in, and their label-free scores
    OUT/merge.json     where they differ in the number of clusters: how the clusters of one join into those of another
    OUT/result.json    after `temi evaluate OUT`: their scores against the labels
"""

import json
import tomllib
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from temi.cache import EmbeddingCache
from temi.pipeline.config import Config, load_config, per_trial
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.tables import cluster_scores, open_training_cache, run_rivals, scored_parts
from temi.pipeline.heads.objectives import Loss
from temi.pipeline.plugins import Plugin
from temi.pipeline.registry import OBJECTIVES
from temi.pipeline.runs.checks import check_settings, training_rows
from temi.pipeline.runs.joins import merge_tree
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.run_folder import RunFolder, read_json, write_json
from temi.pipeline.runs.train import assign, train_pass

MERGES = "merge.json"
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
    axes += [_grid_axis(text) for text in grid]
    chosen = [[*trial, *point] for trial in listed for point in product(*axes)]
    configs = [load_config(base, [*overrides, *trial]) for trial in chosen]
    for number, config in enumerate(configs):
        if config in configs[:number]:
            raise UserError(f"trials {configs.index(config)} and {number} have the same settings; remove one of them")
    return configs


def _read_trials(file: Path) -> tuple[list[list[str]], list[list[str]]]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"trials file {file} cannot be read as TOML: {error}") from None
    trials, grid = table.pop("trial", [{}]), table.pop("grid", {})
    tables = isinstance(trials, list) and all(isinstance(trial, dict) for trial in trials) and isinstance(grid, dict)
    if table or not tables or not (trials and (grid or trials != [{}])):
        raise UserError(
            f"trials file {file} must hold [[trial]] tables or a [grid] table and nothing else, "
            "e.g. [[trial]] with objective.beta = 0.5, or [grid] with objective.beta = [0.5, 0.6]"
        )
    axes = [(name, values) for name, values in _flat(grid)]
    for name, values in axes:
        if not isinstance(values, list) or not values:
            raise UserError(f"[grid] {name} in {file} must be a list of values, got {values!r}")
    return (
        [[f"{name}={json.dumps(value)}" for name, value in _flat(trial)] for trial in trials],
        [[f"{name}={json.dumps(value)}" for value in values] for name, values in axes],
    )


def _flat(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in table.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return pairs


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


def differences(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """For each trial its values of the settings in which not all trials agree, by ``section.key``."""
    flat = [dict(_flat(config.model_dump(mode="json"))) for config in configs]
    names = [name for name in flat[0] if any(settings[name] != flat[0][name] for settings in flat)]
    return [{name: settings[name] for name in names} for settings in flat]


def train_trials(
    cache: EmbeddingCache,
    configs: Sequence[Config],
    out: Path,
    *,
    overwrite: bool = False,
    plugins: Sequence[Plugin] = (),
) -> list[dict[str, Any]]:
    """Train all trials, a pass per group, into ``OUT/trial-NNN``; finished ones are kept, interrupted ones resumed.

    Returns
    -------
    One dict per trial, also in ``OUT/trials.json``: ``trial``, ``settings`` in which it differs, and its summary, or
    ``stopped``, the sentence that says why it could not go on.
    """
    if RunFolder(out).config.exists():
        raise UserError(f"{out} is the folder of a single run; choose another --out for the trials")
    for config in configs:
        images = len(training_rows(cache, config.train.split))
        check_settings(config, images, cache.views, str(cache.folder))
    runs = [RunFolder(out / f"trial-{position:03d}") for position in range(len(configs))]
    for group in group_trials(configs):
        chosen = [configs[i] for i in group], [runs[i] for i in group]
        train_pass(cache, *chosen, out / "neighbors", overwrite=overwrite, plugins=plugins)
    rows = []
    for run, settings in zip(runs, differences(configs), strict=True):
        summary = {"stopped": run.stopped} if run.stopped else read_json(run.training)
        rows.append({"trial": run.folder.name, "settings": settings, **summary})
    write_json(out / "trials.json", rows)
    write_json(out / MERGES, merge_trees(out, rows))
    return rows


def merge_trees(folder: Path, trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How clusters join from each number of clusters to the next lower one, as ``OUT/merge.json`` holds it.

    Trials that agree in all settings but the number of clusters make a tree: ``settings``, what sets its trials apart
    from others; ``levels``, trial and number of clusters of each from the finest on; and what `merge_tree` returns.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        if "stopped" not in trial:
            groups.setdefault(json.dumps(_without_clusters(trial)), []).append(trial)
    trees = []
    for group in groups.values():
        levels = sorted(group, key=lambda trial: -trial["clusters"])
        if len(levels) > 1:
            tables = [pd.read_parquet(folder / trial["trial"] / "assignments.parquet") for trial in levels]
            names = [{"trial": trial["trial"], "clusters": trial["clusters"]} for trial in levels]
            tree = merge_tree([table["cluster"].to_numpy("int64") for table in tables])
            trees.append({"settings": _without_clusters(group[0]), "levels": names, **tree})
    return trees


def _without_clusters(trial: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in trial["settings"].items() if name != "heads.clusters"}


def trial_name(row: dict[str, Any]) -> str:
    """The trial's folder and what sets it apart."""
    return " ".join([row["trial"], *(f"{name}={value}" for name, value in row["settings"].items())])


def is_trials(folder: Path) -> bool:
    """Whether `folder` was written by `train_trials`."""
    return (folder / "trials.json").exists()


def list_trials(folder: Path) -> str:
    """What a command says that takes one run and was given a folder of trials."""
    trials = [trial for trial in read_json(folder / "trials.json") if "stopped" not in trial]
    named = [
        f"{folder / trial['trial']} ({', '.join(f'{name}={value}' for name, value in trial['settings'].items())})"
        for trial in trials[:LISTED]
    ]
    more = [f"{len(trials) - LISTED} more, see {folder / 'trials.json'}"] if len(trials) > LISTED else []
    return f"{len(trials)} trials; give one of them: {', '.join([*named, *more])}"


def evaluate_trials(
    folder: Path, other: EmbeddingCache | None = None, baselines: Sequence[str] = ("kmeans",)
) -> list[dict[str, Any]]:
    """Score every finished trial against the labels, beside baselines once for every number of clusters.

    Returns
    -------
    The parts that were scored, as `evaluate_run` returns them: name, number of images, rows of the table. Also written
    to ``OUT/result.json``.
    """
    trials = [row for row in read_json(folder / "trials.json") if "stopped" not in row]
    parts: dict[str, dict[str, Any]] = {}
    compared: set[tuple[str, int]] = set()
    for trial in trials:
        run = RunFolder(folder / trial["trial"])
        model = ClusterModel.load(run.model)
        home = open_training_cache(run, other)
        scored = scored_parts(run, home, None if other is None or other.digest == home.digest else other, model)
        method = trial_name(trial)
        for part in scored:
            table = parts.setdefault(part.name, {"name": part.name, "images": len(part.label), "rows": []})
            scores = cluster_scores(part.label, assign(model, part.embedding)[0], model.clusters)
            table["rows"].append({"method": method, "kind": "clustering", **scores})
        if (scored[0].name, model.clusters) not in compared:
            compared.add((scored[0].name, model.clusters))
            for rival in run_rivals(run, home, scored, baselines, model.clusters):
                row = {"method": f"{rival.title}, {model.clusters} clusters", "kind": "baseline"}
                for part, cluster in zip(scored, rival.clusters, strict=True):
                    parts[part.name]["rows"].append(row | cluster_scores(part.label, cluster, model.clusters))
    for table in parts.values():
        table["rows"].sort(key=lambda row: -row.get("acc", 0.0))
    result = list(parts.values())
    write_json(folder / "result.json", {"run": str(folder), "parts": result})
    return result
