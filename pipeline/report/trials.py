"""`temi report` of a folder of trials: one page that compares them and shows how their clusters join."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from temi.cache.files import check_writable
from temi.cache.words import counted
from temi.pipeline.report.levels import read_trees, tree_levels
from temi.pipeline.report.pages import CHUNK, pictures_of, render, say_missing, write_page
from temi.pipeline.report.records import LinkedTrial, Pictured, Tree, TrialsFigures, page_json
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.label_free import choose_trials
from temi.pipeline.runs.records import TrialRecord, read_comparison, read_trials
from temi.pipeline.runs.trials import TRIALS, list_trained


def write_overview(folder: Path, out: Path | None = None, source: str | None = None, cache: Path | None = None) -> Path:
    """Write the page of the trials in `folder` to `out`, by default ``RUNS/report.html``.

    `source` is where the images are now, `cache` where the training cache is, if they moved.
    """
    out = out or folder / "report.html"
    check_writable(out.parent)
    data, pictures = figures(folder, out, source, cache)
    say_missing(data.missing)
    write_page(out, render("overview", page_json(data), folder.resolve().name, pictures))
    return out


def figures(folder: Path, out: Path, source: str | None, cache: Path | None) -> tuple[TrialsFigures, list[str]]:
    """All that the page shows, and its pictures."""
    forest, shown, pictures, missing = _forest(folder, source, cache)
    trained = list_trained(folder)
    return TrialsFigures(
        best=_marks(trained),
        trials=[LinkedTrial(trial, _link(folder, out, trial.trial)) for trial in read_trials(folder / TRIALS)],
        trees=forest,
        images=shown,
        chunk=CHUNK,
        missing=missing,
        comparison=read_comparison(folder),
    ), pictures


def _marks(trained: Sequence[TrialRecord]) -> dict[str, str]:
    """What stands beside the trial to trust, of each number of clusters that several trials have."""
    chosen, numbers = choose_trials(trained), {trial.training.clusters for trial in trained if trial.training}

    def mark(clusters: int) -> str:
        return "most trustworthy" + (f" of {counted(clusters, 'cluster')}" if len(numbers) > 1 else "")

    return {best[0].trial: mark(clusters) for clusters, best in chosen.items() if len(best) == 1}


def _link(folder: Path, out: Path, trial: str) -> str:
    """Where a trial's own report is: relative to the page if the page is in the folder; "" where there is none."""
    page = folder / trial / "report.html"
    if not page.exists():
        return ""
    return f"{trial}/report.html" if out.resolve().parent == folder.resolve() else page.resolve().as_uri()


def _forest(folder: Path, source: str | None, cache: Path | None) -> tuple[list[Tree], Pictured, list[str], str]:
    """The trees, the images in them, their pictures, and why there are no pictures."""
    forest, trees = [], read_trees(folder)
    if not trees:
        return [], Pictured([]), [], ""
    for tree in trees:
        run = FinishedRun(folder / tree.levels[0].trial, cache)
        rows = run.assignments["row"].to_numpy()
        forest.append(tree_levels(folder, tree, run.scaled))
    shown = list(dict.fromkeys(image for levels in forest for image in levels.pictures()))
    place = {image: position for position, image in enumerate(shown)}
    pictures, _, missing = pictures_of(run, rows[np.array(shown)], list(range(len(shown))), source)
    keys = run.assignments["key"].iloc[shown].tolist()
    return [levels.figures(place) for levels in forest], Pictured(keys), pictures, missing
