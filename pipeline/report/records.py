"""What the pages show, as types: written as the one JSON block that page/*.js reads, and nowhere read back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import JsonValue

from temi.pipeline.results.corrections import Correction, to_json
from temi.pipeline.runs.records import Record, ScoredPart, Setting, TrialRecord

Column = list[int]
Figures = list[float]


@dataclass(frozen=True)
class Overview:
    """The figures of the whole run."""

    images: int
    unreadable: int
    clusters: int
    used: int
    smallest: int
    largest: int
    confidence: float
    seconds: float
    steps: int
    agreement: float | None
    consistency: float | None
    backbone: str
    histogram: Column
    written: str


@dataclass(frozen=True)
class Images:
    """A column per property of an image, all of one length; see `image_columns`.

    Attributes
    ----------
    typical : cosine to the center of the image's cluster as corrected
    group, exact : numbers of sets of duplicates
    label : [] where no image has one
    near : places of similar images in the page, -1 for those that are not in it; None: a server is asked
    """

    row: Column
    key: list[str]
    cluster: Column
    confidence: Figures
    second: Column
    runner: Figures
    typical: Figures
    likeness: Figures
    strange: Column
    group: Column
    exact: Column
    x: Figures
    y: Figures
    label: Column
    near: list[Column] | None


@dataclass(frozen=True)
class Base:
    """The clusters as trained: how many, their sizes and first names.

    Attributes
    ----------
    outside : clusters of images that corrections name and that are not in the page, a sample, by key
    """

    clusters: int
    sizes: Column
    names: dict[int, str]
    outside: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Brackets:
    """A tree of clusters as the corners of its brackets, and the clusters at its leaves."""

    across: list[Figures]
    along: list[Figures]
    leaves: Column


@dataclass(frozen=True)
class Confusion:
    """Images of each class in each cluster, the best match on the diagonal, and the share that lies there."""

    classes: list[str]
    clusters: list[str]
    count: list[Column]
    accuracy: float


@dataclass(frozen=True)
class Curves:
    """Metrics of training by step."""

    step: list[int]
    loss: list[float | None]
    best_head_loss: list[float | None]
    effective_clusters: list[float | None]


@dataclass(frozen=True)
class Node:
    """A cluster of one trial in a tree of trials; `share` of its images lie in the one above, None at the top."""

    id: int
    level: int
    name: str
    images: int
    share: float | None
    typical: Column
    parts: list["Node"]


@dataclass(frozen=True)
class TreeLevel:
    """One trial of a tree of trials."""

    trial: str
    clusters: int
    own: bool


@dataclass(frozen=True)
class Tree:
    """How clusters of trials join, the coarsest first."""

    settings: dict[str, Setting]
    together: float
    levels: list[TreeLevel]
    top: list[Node]


@dataclass(frozen=True)
class RunFigures:
    """What a page shows of a run, pictures apart.

    Attributes
    ----------
    entries : corrections, which the page replays on the images as trained
    near : clusters most alike, of each cluster
    agreement : of every two of the heads compared
    settings : by section, and what the embeddings were made from
    chunk : pictures to a block
    levels : the tree of trials that the run is in
    missing : why there are no pictures
    odd : what is odd about the pixels of an image, by its place
    looked : images whose pixels were looked at
    looking : whether a server is still looking at the others
    words : whether a server finds images by words
    """

    overview: Overview
    images: Images
    base: Base
    classes: list[str]
    comparison: tuple[ScoredPart, ...]
    curves: Curves | None
    agreement: list[Figures]
    settings: dict[str, dict[str, JsonValue]]
    chunk: int
    entries: tuple[Correction, ...] = ()
    near: list[Column] = field(default_factory=list)
    tree: Brackets | None = None
    confusion: Confusion | None = None
    levels: Tree | None = None
    missing: str = ""
    odd: Mapping[int, str] = field(default_factory=dict)
    looked: int = 0
    looking: bool = False
    words: bool = False


@dataclass(frozen=True)
class Pictured:
    """Images in an overview: their names, and beside the block their pictures."""

    key: list[str]


@dataclass(frozen=True)
class LinkedTrial:
    """A trial and where its own report is; "" where there is none."""

    record: TrialRecord
    link: str


@dataclass(frozen=True)
class TrialsFigures:
    """What the page of a folder of trials shows; `best` is what stands beside trials to trust."""

    best: dict[str, str]
    trials: list[LinkedTrial]
    trees: list[Tree]
    images: Pictured
    chunk: int
    missing: str
    comparison: tuple[ScoredPart, ...]


def page_json(figures: RunFigures | TrialsFigures) -> str:
    """The JSON block of a page, without what is None; no text in it ends the block."""
    block = json.dumps(figures, default=_plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return block.replace("<", "\\u003c")


def _plain(value: object) -> dict[str, Any]:
    if isinstance(value, Record):
        return value.model_dump(exclude_none=True)
    if isinstance(value, Correction):
        return to_json(value)
    named = {part.name: getattr(value, part.name) for part in fields(value)}  # type: ignore[arg-type]
    return {name: inner for name, inner in named.items() if inner is not None}
