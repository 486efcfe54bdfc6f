"""Trials with differing numbers of clusters in a report: their merge tree, with names and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from temi.pipeline.report.cards import centers, typical_images
from temi.pipeline.report.records import Node, Tree, TreeLevel
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.records import Join, MergeTree, Top, read_record
from temi.pipeline.runs.trials import MERGES, is_trials

PICTURED = 5  # images of each cluster


@dataclass(frozen=True)
class Level:
    """One trial in a tree.

    Attributes
    ----------
    trial : name of its folder
    headings : (C,) what its clusters are called
    typical : (C, up to PICTURED) the images nearest to each cluster's center, as positions among all images
    """

    trial: str
    headings: list[str]
    typical: list[list[int]]


@dataclass(frozen=True)
class Levels:
    """A tree of ``merge.json`` and its trials, the coarsest first; `own` is the trial that a report is of, if any."""

    tree: MergeTree
    levels: list[Level]
    own: str = ""

    def pictures(self) -> list[int]:
        """Images that the tree shows."""
        return [image for level in self.levels for images in level.typical for image in images]

    def figures(self, place: Mapping[int, int]) -> Tree:
        """For the page: the levels, and the clusters below each other. `place` is where an image is in the page."""
        steps = list(reversed(self.tree.joins))
        levels = [TreeLevel(level.trial, len(level.headings), level.trial == self.own) for level in self.levels]
        top = [self._node(0, node, steps, place) for node in self.tree.top]
        return Tree(self.tree.settings, self.tree.together, levels, top)

    def _node(self, depth: int, node: Top | Join, steps: Sequence[Sequence[Join]], place: Mapping[int, int]) -> Node:
        level, cluster = self.levels[depth], node.cluster
        joining = [join for join in steps[depth] if join.into == cluster] if depth < len(steps) else []
        return Node(
            id=cluster,
            level=depth,
            name=level.headings[cluster],
            images=node.images,
            share=node.share if isinstance(node, Join) else None,
            typical=[place[image] for image in level.typical[cluster]],
            parts=[self._node(depth + 1, join, steps, place) for join in joining],
        )


def run_levels(run: FinishedRun, scaled: Float32[np.ndarray, "n D"]) -> Levels | None:
    """The tree that `run` is in; None if it was not trained beside runs with other numbers of clusters."""
    folder = run.folder.resolve()
    trees = read_trees(folder.parent)
    tree = next((tree for tree in trees if folder.name in [level.trial for level in tree.levels]), None)
    return None if tree is None else tree_levels(folder.parent, tree, scaled, folder.name)


def read_trees(folder: Path) -> list[MergeTree]:
    """The trees of a folder of trials; none of any other folder."""
    file = folder / MERGES
    return read_record(list[MergeTree], file) if is_trials(folder) and file.exists() else []


def tree_levels(folder: Path, tree: MergeTree, scaled: Float32[np.ndarray, "n D"], own: str = "") -> Levels:
    """The trials of `tree`; `scaled` are the embeddings of all images."""
    levels = []
    for named in reversed(tree.levels):
        run = FinishedRun(folder / named.trial)
        cluster = run.trained["cluster"].to_numpy("int64")
        center = centers(scaled, cluster, named.clusters)
        levels.append(Level(named.trial, run.headings, typical_images(scaled, cluster, center, PICTURED)))
    return Levels(tree, levels, own)
