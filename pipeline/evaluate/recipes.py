"""Baselines that are recipes of this project's own training: settings in configs/, trained on the run's own cache."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from jaxtyping import Float16
from numpy import ndarray

from temi.cache import EmbeddingCache
from temi.cache.convert.join import spaces_of
from temi.cache.kept import Recipe
from temi.cache.words import counted
from temi.pipeline.config import SEEDS, Config, load_config
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.baselines import Labeling, extended, import_needed, run_baseline, version_of
from temi.pipeline.extras import install
from temi.pipeline.features.features import Features
from temi.pipeline.features.kinds import Kind
from temi.pipeline.progress import say
from temi.pipeline.registry import BASELINES
from temi.pipeline.runs.checks import training_rows
from temi.pipeline.runs.train import assign, train_heads

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {"scan": "SCAN", "published": "TEMI, published", "seed-recipe": "the first system's recipe"}


ON = "@"  # between a baseline and the scaling of the rows that it clusters


def title_of(name: str) -> str:
    """What a baseline or a recipe is called in tables."""
    baseline, _, kind = name.partition(ON)
    title = RECIPES[name] if name in RECIPES else BASELINES[baseline].title
    return f"{title}, {kind}" if kind else title


def parse_baselines(text: str) -> list[str]:
    """Names of ``none`` or a comma-separated list; what they need is imported now rather than in an hour.

    NAME is on the features as cached, NAME@SCALING on what scaling.py makes of them; ``all`` is every NAME.
    """
    there, names = [*BASELINES, *RECIPES], list[str]()
    for asked in [] if text == "none" else text.split(","):
        name, on, kind = asked.partition(ON)
        if on and kind not in get_args(Kind):
            raise UserError(f"--baselines {asked}: no scaling is called {kind!r}; give {', '.join(get_args(Kind))}")
        if on and name in RECIPES:
            raise UserError(f"--baselines {asked}: {name} trains on the cache; give it without {ON}{kind}")
        every = list(BASELINES) if on else there
        if name != "all" and name not in every:
            raise UserError(f"--baselines has no {name!r}; give all, none or some of {','.join(there)}")
        for own in every if name == "all" else [name]:
            names.append(own + on + kind)
    _import_all([own for own in (name.partition(ON)[0] for name in names) if own in BASELINES])
    return names


def _import_all(names: Sequence[str]) -> None:
    """Import what these baselines need; UserError with the one extra that brings all that is missing."""
    lacking: dict[str, UserError] = {}
    for name in names:
        try:
            import_needed(name)
        except UserError as error:
            lacking[name] = error
    if len({BASELINES[name].extra for name in lacking}) > 1:
        raise UserError(f"{', '.join(lacking)} need packages that are not installed; {install('baselines')}")
    if lacking:
        raise next(iter(lacking.values()))


def asks_for_all(text: str) -> bool:
    """Whether ``--baselines`` names all: who asks so cannot know which of them need more images than there are."""
    return any(asked.partition(ON)[0] == "all" for asked in text.split(","))


def load_recipe(name: str, clusters: int, seed: int = 0, more: Sequence[str] = ()) -> Config:
    """Settings of configs/NAME.toml (empty: the default) for so many clusters; no tracking."""
    seeds = [f"{key}={seed}" for key in SEEDS]
    settings = [f"heads.clusters={clusters}", "train.tensorboard=false", *seeds, *more]
    return load_config(CONFIGS / f"{name}.toml" if name else None, settings)


def runnable(names: Sequence[str], cache: EmbeddingCache, split: str, *, leave_out: bool) -> list[str]:
    """The baselines that have enough rows to train on; others are left out and named, or refused before any runs.

    Recipes see copies once, as all training here does.
    """
    rows, fitting = training_rows(cache, split), list[str]()
    distinct = len(Features.of_cache(cache, rows).copies[0]) if not RECIPES.keys().isdisjoint(names) else len(rows)
    for name in names:
        there, needed = distinct if name in RECIPES else len(rows), _least_rows(name)
        sentence = f"{title_of(name)} needs {needed} different images, and there are {there} to train on"
        if there >= needed:
            fitting.append(name)
        elif leave_out:
            say(f"{name} is left out: {sentence}")
        else:
            raise UserError(f"{sentence}; leave {name} out of --baselines")
    return fitting


def _least_rows(name: str) -> int:
    """Rows that a baseline or a recipe needs: a row has neighbors besides itself."""
    if name not in RECIPES:
        return BASELINES[name.partition(ON)[0]].least
    config = load_recipe(name, 1)
    return config.neighbors.k + 1 if "neighbors" in config.pairs.source else 2


def run_rival(
    name: str,
    cache: EmbeddingCache,
    split: str,
    parts: Sequence[Float16[ndarray, "_ D"]],
    clusters: int,
    scratch: Path | None = None,
) -> tuple[list[Labeling], float]:
    """Clusters of every part by the baseline or recipe `name`, and the seconds that clustering the first took.

    What a baseline of this package finds in the training rows is kept beside the cache, else in `scratch`: it is the
    same for every run.

    Parameters
    ----------
    cache, split : what recipes train on; its rows are the first part
    parts : embeddings that are clustered: the training rows, then held-out ones
    """
    if name in RECIPES:
        return _run_recipe(name, cache, split, parts, clusters)
    baseline, _, kind = name.partition(ON)
    features, train, others = Features.of_cache(cache, training_rows(cache, split), scratch), parts[0], parts[1:]
    if kind:
        scaling = features.scaling(cast(Kind, kind))
        train, *others = (scaling(torch.from_numpy(part)).numpy() for part in parts)
    versions = version_of(baseline)
    recipe: Recipe = {"baseline": name, "clusters": clusters, "versions": versions or ""}
    kept = features.memory.recall("baseline", recipe) if versions else None
    if kept is None:
        cluster, seconds = run_baseline(baseline, train, clusters, widths=() if kind else spaces_of(cache))
        kept = {"cluster": cluster, "seconds": np.array([seconds])}
        if versions:
            features.memory.keep("baseline", recipe, kept)
    else:
        what = f"{title_of(name)}, {counted(clusters, 'cluster')}"
        say(f"{what}: kept from when it first ran on these images, its seconds, too")
    return [kept["cluster"], *extended(baseline, train, kept["cluster"], others)], float(kept["seconds"][0])


def _run_recipe(
    name: str, cache: EmbeddingCache, split: str, parts: Sequence[Float16[ndarray, "_ D"]], clusters: int
) -> tuple[list[Labeling], float]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        model = train_heads(cache, load_recipe(name, clusters, more=[f"train.split={split}"]), Path(folder))
        seconds = time.perf_counter() - began
    return [assign(model, part)[0].astype("int64") for part in parts], seconds
