"""Whether entries fit the run as it is by then: what `temi correct` refuses, a file edited by hand may not hold."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from temi.pipeline.errors import UserError
from temi.pipeline.results.corrections import (
    Corrected,
    Correction,
    Different,
    Merge,
    Move,
    Note,
    Remove,
    Rename,
    Same,
    Split,
    apply,
    idle,
    in_force,
    positions,
    replay_clusters,
    without_images,
)
from temi.pipeline.results.corrections_file import place_of
from temi.pipeline.results.names import check_heading, check_name, check_unique


def check_fits(state: Corrected, entry: Correction) -> None:
    """Refuse an entry that names clusters which `state` does not have, or that gives names which cannot be."""
    match entry:
        case Merge(clusters=clusters):
            if len(set(clusters)) < len(clusters):
                raise UserError(f"cluster {max(clusters, key=clusters.count)} is named twice; name each once")
            _check_clusters(state, clusters)
        case Split(cluster=cluster):
            _check_clusters(state, [cluster])
        case Move(to=to):
            _check_clusters(state, [to] if to != state.clusters else [])
        case Rename(names=names):
            _check_clusters(state, names)
            _check_names(state, names)
        case Note(cluster=cluster):
            _check_clusters(state, [] if cluster is None else [cluster])


def check_written(
    run: Path, entries: Sequence[Correction], clusters: int, names: dict[int, str], place: dict[str, int] | None = None
) -> None:
    """Refuse what stands in the file of `run` and fits neither its clusters nor, by `place` of each key, its images.

    Raises
    ------
    UserError
        An entry in force, an undo or a redo would have been refused when it was said; the file and the line are named.
    """
    if nothing := idle(entries):
        first = nothing[0]
        raise UserError(f"{place_of(run, first)}: there is nothing to {entries[first].action}; take the line out")
    state = replay_clusters(clusters, (), names)
    for entry in in_force(entries):
        try:
            check_fits(state, entry)
            if isinstance(entry, Split):
                _check_parts(state, entry)
            if place is not None:
                positions(keys_of(entry), place)
        except UserError as error:
            number = next(number for number, other in enumerate(entries) if other is entry)
            raise UserError(f"{place_of(run, number)}: {error}") from None
        apply(state, without_images(entry), {})


def _check_clusters(state: Corrected, clusters: Iterable[int]) -> None:
    for cluster in clusters:
        if cluster >= state.clusters:
            merged = f", without {', '.join(map(str, sorted(state.merged)))}" if state.merged else ""
            raise UserError(f"cluster {cluster} does not exist; they are 0 to {state.clusters - 1}{merged}")
        if cluster in state.merged:
            raise UserError(f"cluster {cluster} was merged into another; undo that, or name the other")


def _check_names(state: Corrected, names: dict[int, str]) -> None:
    for cluster, name in names.items():
        check_name(name, f"cluster {cluster}")
        check_heading(cluster, name, "names")
    check_unique(state.names | names)


def _check_parts(state: Corrected, split: Split) -> None:
    """A split is written down with its outcome, which a line made by hand does not have."""
    count, dimensions = len(split.into), {len(center) for center in split.centers}
    numbers = [split.cluster, *range(state.clusters, state.clusters + count - 1)]
    whole = count >= 2 and len(split.keys) == len(split.centers) == count and len(dimensions) == 1
    if not whole or split.into != numbers:
        raise UserError(
            "this split does not hold the parts that were made; take the line out, and give it to `temi correct RUN "
            "FILE`, which makes them"
        )


def keys_of(entry: Correction) -> Iterable[str]:
    """Keys of all images that `entry` names."""
    match entry:
        case Split(keys=parts):
            return chain.from_iterable(parts)
        case Move(keys=keys) | Remove(keys=keys) | Same(keys=keys) | Different(keys=keys) | Note(keys=keys):
            return keys
    return ()
