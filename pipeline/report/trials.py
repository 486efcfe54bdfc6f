"""`temi report` of a folder of trials: one page that compares them and shows how their clusters join."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from temi.pipeline.report.levels import read_trees, tree_levels
from temi.pipeline.report.pages import CHUNK, pictures_of, render, write_page
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.label_free import choose_trial
from temi.pipeline.runs.run_folder import read_json
from temi.pipeline.runs.trials import list_trained


def write_overview(folder: Path, out: Path | None = None, source: str | None = None, cache: Path | None = None) -> Path:
    """Write the page of the trials in `folder` to `out`, by default ``RUNS/report.html``.

    `source` is where the images are now, `cache` where the training cache is, if they moved.
    """
    out = out or folder / "report.html"
    data, pictures = figures(folder, out, source, cache)
    write_page(out, render("overview", data, folder.resolve().name, pictures))
    return out


def figures(folder: Path, out: Path, source: str | None, cache: Path | None) -> tuple[dict[str, Any], list[str]]:
    """All that the page shows, as JSON, and the pictures."""
    trials = read_json(folder / "trials.json")
    forest, images, missing = _forest(folder, source, cache)
    result = folder / "result.json"
    trained = list_trained(folder)
    return {
        "best": choose_trial(trained).trial if trained else "",
        "trials": [_trial(folder, out, trial) for trial in trials],
        "trees": forest,
        "images": {"key": images["key"]},
        "chunk": CHUNK,
        "missing": missing,
        "comparison": read_json(result)["parts"] if result.exists() else [],
    }, images["picture"]


def _trial(folder: Path, out: Path, trial: dict[str, Any]) -> dict[str, Any]:
    """A trial's row, and where its own report is: relative to the page if the page is in the folder."""
    page = folder / trial["trial"] / "report.html"
    beside = out.resolve().parent == folder.resolve()
    link = "" if not page.exists() else f"{trial['trial']}/report.html" if beside else page.resolve().as_uri()
    return trial | {"link": link}


def _forest(
    folder: Path, source: str | None, cache: Path | None
) -> tuple[list[dict[str, Any]], dict[str, list[str]], str]:
    """The trees with pictures, the names and pictures of the images in them, and why there are no pictures."""
    forest, trees = [], read_trees(folder)
    if not trees:
        return [], {"key": [], "picture": []}, ""
    for tree in trees:
        run = FinishedRun(folder / tree["levels"][0]["trial"], cache)
        rows = run.assignments["row"].to_numpy()
        scaled = run.model.scaling(torch.from_numpy(run.cache.embedding()[rows])).cpu().numpy()
        forest.append(tree_levels(folder, tree, scaled))
    shown = list(dict.fromkeys(image for levels in forest for image in levels.pictures()))
    place = {image: position for position, image in enumerate(shown)}
    pictures, _, missing = pictures_of(run, rows[np.array(shown)], list(range(len(shown))), source)
    keys = run.assignments["key"].iloc[shown].tolist()
    return [levels.figures(place) for levels in forest], {"key": keys, "picture": pictures}, missing
