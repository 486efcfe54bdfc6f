"""What runs and trials leave behind, as types: written and read here, so that no other file handles loose dictionaries.

::

    RUN/training.json     Training
    RUN/start.json        StartRecord
    RUN/clusters.json     the ClusterCount of `--clusters auto`; OUT/clusters.json of trials
    OUT/trials.json       a list of TrialRecord
    OUT/merge.json        a list of MergeTree
    STUDY/search.json     SearchRecord
    RUN/result.json       Result, as `temi evaluate` leaves it
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from temi.cache.files import first_problem
from temi.pipeline.errors import UserError
from temi.pipeline.runs.run_folder import read_json, write_json

RESULT = "result.json"

T = TypeVar("T")
Setting = bool | int | float | str | tuple[Any, ...] | None


class Record(BaseModel):
    """A frozen record; a field that an older version wrote and this one lacks is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Sizes(Record):
    """Clusters of an assignment: how many, how many in use, exp of the entropy of their sizes, and the extremes."""

    clusters: int
    used_clusters: int
    effective_clusters: float
    smallest_cluster: int
    largest_cluster: int


class LabelFree(Sizes):
    """What can be said of a trained model without a label; None where a score needs more than one head, or a graph."""

    mean_confidence: float
    head_agreement: float | None
    stability: float | None
    neighbor_consistency: float | None
    linear_accuracy: float


class Training(LabelFree):
    """A finished trial: its length, its losses, and its label-free scores."""

    steps: int
    images: int
    seconds: float
    trials_in_pass: int
    skipped_steps: int
    head_loss: tuple[float, ...]
    selected_head: int
    expected_accuracy: float | None = None

    @property
    def loss(self) -> float:
        """The lowest mean loss of a head."""
        return min(self.head_loss)


class StartRecord(Record):
    """What heads began at: the names of the cuts they learned, how many images were cut, and how far cuts agreed.

    Of more than 100,000 that is a random sample.
    """

    cuts: tuple[str, ...]
    images: int = 0
    agreement: float | None = None


class TrialRecord(Record):
    """One of many trials: its folder, the settings in which it differs, and how it ended: `training` or `stopped`.

    A trial of a search has no folder, and was trained once for each of its `seeds`; `training` is the first.
    """

    trial: str
    settings: dict[str, Setting]
    training: Training | None = None
    stopped: str | None = None
    seeds: tuple[Training, ...] = ()

    @property
    def name(self) -> str:
        """The folder and what sets the trial apart."""
        return " ".join([self.trial, *(f"{name}={value}" for name, value in self.settings.items())])


class SearchRecord(Record):
    """The trials of a search, those trained to their end first and the best of them before the others.

    Attributes
    ----------
    score : the label-free score by which they are ranked
    cache, digest, rows : the folder of the embeddings, their digest and number; "" and 0 of an older version
    plugins : digests of files of the user's own by name; None of an older version
    settings : those that trials share, by section
    """

    score: str
    cache: str
    digest: str = ""
    rows: int = 0
    plugins: dict[str, str] | None = None
    settings: dict[str, dict[str, Setting]]
    trials: tuple[TrialRecord, ...]


class Level(Record):
    """One trial of a merge tree."""

    trial: str
    clusters: int


class Join(Record):
    """A cluster, its number of images, and the coarser cluster that holds the share `share` of them, the most."""

    cluster: int
    images: int
    into: int
    share: float


class Top(Record):
    """A cluster of the coarsest level."""

    cluster: int
    images: int


class MergeTree(Record):
    """How the clusters of trials with different numbers of clusters join.

    Attributes
    ----------
    settings : what sets its trials apart from those of other trees
    levels : the trials, the finest first
    joins : for each level but the last
    top : the clusters of the last
    together : share of all images that lie, from each level to the next, where their cluster joins
    """

    settings: dict[str, Setting]
    levels: tuple[Level, ...]
    joins: tuple[tuple[Join, ...], ...]
    top: tuple[Top, ...]
    together: float


class ScoreRow(Record):
    """One row of a table of scores; what does not apply is None and is not written."""

    method: str
    kind: Literal["clustering", "baseline", "ceiling"]
    acc: float | None = None
    nmi: float | None = None
    ami: float | None = None
    ari: float | None = None
    purity: float | None = None
    clusters: int | None = None
    used_clusters: int | None = None
    effective_clusters: float | None = None
    smallest_cluster: int | None = None
    largest_cluster: int | None = None
    confidence: float | None = None
    acc_of_most_confident: dict[str, float] | None = None
    seconds: float | None = None


class ScoredPart(Record):
    """Rows of one table: those that were trained on, a held-out split, or another cache."""

    name: str
    images: int
    rows: tuple[ScoreRow, ...]


class Result(Record):
    """What `temi evaluate` found; `training` is None for a folder of trials."""

    run: str
    parts: tuple[ScoredPart, ...]
    training: Training | None = None


def short_settings(settings: Mapping[str, Setting], beside: Sequence[Mapping[str, Setting]] = ()) -> str:
    """Settings as one line, without their sections unless two differ in nothing else.

    Of a path its last part, or as many as tell it from those of the same name `beside`.
    """
    values = {name: _value(value, (other.get(name) for other in beside)) for name, value in settings.items()}
    parts = {name: f"{name.rpartition('.')[2]}={value}" for name, value in values.items()}
    called: dict[str, set[str]] = {}
    for part in parts.values():
        called.setdefault(part.partition("=")[0], set()).add(part)
    alike = {short for short, found in called.items() if len(found) > 1}
    whole = [f"{name}={values[name]}" if name.rpartition(".")[2] in alike else parts[name] for name in parts]
    return " ".join(dict.fromkeys(whole)) or "all settings alike"


def _value(value: Setting, beside: Iterable[Setting]) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, str) or "/" not in value:
        return str(value)
    others = [_ends(str(other)) for other in beside if other != value]
    return next(end for end in _ends(value) if end == value or not any(end in ends for ends in others))


def _ends(path: str) -> list[str]:
    """The last part of a path, its last two, and so on up to all of it."""
    parts = path.rstrip("/").split("/")
    return ["/".join(parts[-count:]) for count in range(1, len(parts))] + [path]


def write_record(path: Path, record: object) -> None:
    """Write a `Record`, a frozen dataclass, or a list of them, as JSON, without what is None."""
    write_json(path, to_jsonable_python(record, exclude_none=True))


def read_record(kind: type[T], path: Path) -> T:
    """The `kind` in `path`; UserError where the file is missing, damaged, or of a version that cannot be read."""
    try:
        return TypeAdapter(kind).validate_python(read_json(path), strict=False)
    except ValidationError as error:
        raise misfit(path, error) from None


def misfit(path: Path, error: ValidationError) -> UserError:
    """What to tell of a file whose content is not what its name promises."""
    where, problem = first_problem(error)
    return UserError(
        f"{path} is damaged or from an older version ({where}: {problem['msg'].lower()}); train or evaluate again"
    )


def read_comparison(folder: Path) -> tuple[ScoredPart, ...]:
    """What `temi evaluate` left in a run or a folder of trials; () where it was not asked."""
    path = folder / RESULT
    return read_record(Result, path).parts if path.exists() else ()


def write_trials(path: Path, trials: Sequence[TrialRecord]) -> None:
    """``trials.json``: the scores of a trial stand beside its name, as tables want them."""
    rows = to_jsonable_python(trials, exclude_none=True)
    write_json(path, [{**row.pop("training", {}), **row} for row in rows])


def read_trials(path: Path) -> list[TrialRecord]:
    """What `write_trials` wrote."""
    rows = read_json(path)
    try:
        return [TrialRecord(**row, training=None if "stopped" in row else Training(**row)) for row in rows]
    except (ValidationError, TypeError):
        raise UserError(f"{path} is damaged or from an older version; train the trials again") from None
