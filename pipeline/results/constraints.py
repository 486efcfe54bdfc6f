"""What corrections teach a training: clusters as a person left them, and pairs that belong together or apart."""

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from temi.pipeline.config import asked, load_config
from temi.pipeline.errors import UserError
from temi.pipeline.features.constraints import NOWHERE, Constraints, distinct_pairs, together
from temi.pipeline.results.corrections import (
    REMOVED,
    Correction,
    Different,
    Merge,
    Move,
    Remove,
    Same,
    Split,
    apply,
    in_force,
    positions,
    replay,
)
from temi.pipeline.results.corrections_file import CORRECTIONS
from temi.pipeline.results.finished import FinishedRun

WITNESSES = 32  # images that speak for a cluster or a part: its most confident ones

Keys = Sequence[str]


def clusters_left(
    told: Constraints, config: Path | None, overrides: Sequence[str], inherited: bool = False
) -> list[str]:
    """`overrides`, asking for as many clusters as a person left where nobody says how many.

    `inherited`: the settings in `config` are those of an earlier run, whose number of clusters nobody asks for now.
    """
    if inherited:
        silent = "heads.clusters" not in asked(overrides)
    else:
        silent = "clusters" not in load_config(config, overrides).heads.model_fields_set
    return [*overrides, *([f"heads.clusters={told.clusters}"] if silent else [])]


def read_constraints(file: Path) -> tuple[FinishedRun, Constraints]:
    """What the corrections of a run say, and the run; `file` is its folder, or the file of corrections in there.

    Raises
    ------
    UserError
        It is neither, nothing was corrected, no image is left in a cluster, or two things that a person said contradict
        each other.
    """
    if not file.exists():
        raise UserError(f"{file} does not exist; give the folder of an earlier run, or the {CORRECTIONS} in it")
    folder = file if file.is_dir() else file.parent
    if file.name != CORRECTIONS and not file.is_dir():
        raise UserError(
            f"{file} is not the {CORRECTIONS} of a run, which says what its entries change; take it into the run by "
            f"`temi correct RUN {file.name}` and give RUN/{CORRECTIONS}"
        )
    run = FinishedRun(folder)
    if not in_force(run.corrections):
        raise UserError(f"{folder} has no corrections to learn from; make some with `temi serve {folder}`")
    table = run.trained
    if (run.corrected.cluster == REMOVED).all():
        raise UserError(
            f"{folder}: all {len(table):,} images were taken out of their clusters, which leaves none to train; "
            f"put some back with `temi serve {folder}`, or train without --corrections"
        )
    confidence = table["confidence"].to_numpy("float32")
    cluster = table["cluster"].to_numpy("int64")
    return run, constraints(table["key"].tolist(), cluster, confidence, run.model.clusters, run.corrections)


def constraints(
    keys: Keys,
    cluster: Int64[np.ndarray, " n"],
    confidence: Float32[np.ndarray, " n"],
    clusters: int,
    entries: Iterable[Correction],
) -> Constraints:
    """What `entries` say of images that a run assigned to `cluster`, before any of them.

    A merge joins the surest images of its clusters; a split parts the surest of each part from those of the others and
    joins those within; a move joins an image to the surest of where it went and parts it from the surest of where it
    was. Of these pairs, those count that still hold in the end; of pairs that a person named, all.

    Raises
    ------
    UserError
        Two images marked as different were marked as the same by way of others, or images marked as the same were put
        into different clusters.
    """
    place = {key: position for position, key in enumerate(keys)}
    implied: dict[tuple[int, int], bool] = {}
    named: dict[tuple[int, int], bool] = {}
    state = replay(keys, cluster, clusters, ())
    for entry in in_force(entries):
        told = named if isinstance(entry, Same | Different) else implied
        for pair, joined in _told(entry, state.cluster, confidence, place):
            one, other = sorted(map(int, pair))
            if one != other:
                told[one, other] = joined
        apply(state, entry, place)
    left = np.where(state.cluster == REMOVED, NOWHERE, state.cluster)
    _check(keys, left, state.by_hand, named)
    holds = {pair: joined for pair, joined in implied.items() if joined == _together(left, *pair)}
    said = state.by_hand.copy()
    said[[image for pair, joined in holds.items() if joined for image in pair]] = True
    both = holds | named
    must, cannot = ([pair for pair, joined in both.items() if joined == wanted] for wanted in (True, False))
    return Constraints(keys, left, said & (left != NOWHERE), distinct_pairs(must), distinct_pairs(cannot))


def _together(cluster: Int64[np.ndarray, " n"], one: int, other: int) -> bool:
    return bool(cluster[one] == cluster[other] != NOWHERE)


def _check(
    keys: Keys, cluster: Int64[np.ndarray, " n"], by_hand: np.ndarray, named: dict[tuple[int, int], bool]
) -> None:
    """Refuse what nobody could keep; by name."""
    part = together(distinct_pairs([pair for pair, joined in named.items() if joined]), len(keys))
    for (one, other), joined in named.items():
        if not joined and part[one] == part[other]:
            raise UserError(
                f"{keys[one]} and {keys[other]} are marked as different, and as the same by way of other images; "
                "take one of these marks back"
            )
    placed = np.flatnonzero(by_hand)
    for first, second in pairwise(placed[np.argsort(part[placed], kind="stable")]):
        if part[first] == part[second] and cluster[first] != cluster[second]:
            raise UserError(
                f"{keys[first]} and {keys[second]} are marked as the same and were put into different clusters; "
                "move one of them, or take the mark back"
            )


def _told(
    entry: Correction, cluster: Int64[np.ndarray, " n"], confidence: Float32[np.ndarray, " n"], place: dict[str, int]
) -> list[tuple[Sequence[int], bool]]:
    """Pairs and whether they belong together, by one entry on assignments as they were before it."""

    def surest(images: Int64[np.ndarray, " m"], count: int = WITNESSES) -> list[int]:
        return list(images[np.argsort(-confidence[images], kind="stable")[:count]])

    def witnesses(number: int, without: Int64[np.ndarray, " m"]) -> list[int]:
        return surest(np.setdiff1d(np.flatnonzero(cluster == number), without))

    none = np.zeros(0, dtype=np.int64)
    match entry:
        case Merge():
            return _joined([witnesses(number, none) for number in entry.clusters])
        case Split():
            parts = [surest(positions(images, place)) for images in entry.keys]
            within = [pair for part in parts for pair in _chain(part)]
            return within + _parted(parts)
        case Move():
            moved = positions(entry.keys, place)
            there = witnesses(entry.to, moved)
            told = _chain(list(moved))
            for image in moved:
                told += [((image, other), True) for other in there[:1]]
                if cluster[image] != entry.to:  # else it was kept where training had put it, and leaves nothing
                    told += [((image, other), False) for other in _left(image, cluster, moved, confidence)]
            return told
        case Remove():
            images = positions(entry.keys, place)
            return [((image, other), False) for image in images for other in _left(image, cluster, images, confidence)]
        case Same() | Different():
            return [(positions(entry.keys, place).tolist(), isinstance(entry, Same))]
    return []


def _left(
    image: int, cluster: Int64[np.ndarray, " n"], moved: Int64[np.ndarray, " m"], confidence: Float32[np.ndarray, " n"]
) -> list[int]:
    """The surest image that stays in the cluster that `image` leaves."""
    if cluster[image] == REMOVED:
        return []
    stay = np.setdiff1d(np.flatnonzero(cluster == cluster[image]), moved)
    return [int(stay[confidence[stay].argmax()])] if len(stay) else []


def _chain(images: list[int]) -> list[tuple[Sequence[int], bool]]:
    return [((one, other), True) for one, other in pairwise(images)]


def _joined(groups: list[list[int]]) -> list[tuple[Sequence[int], bool]]:
    first, *others = groups
    return [((one, other), True) for group in others for one, other in zip(first, group, strict=False)]


def _parted(groups: list[list[int]]) -> list[tuple[Sequence[int], bool]]:
    both = combinations(groups, 2)
    return [((one, other), False) for first, second in both for one, other in zip(first, second, strict=False)]
