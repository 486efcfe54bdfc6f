"""Corrections: a replay that does what each entry says, and what entries teach."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temi.pipeline.errors import UserError
from temi.pipeline.features.constraints import NOWHERE
from temi.pipeline.results.constraints import constraints
from temi.pipeline.results.corrections import (
    REMOVED,
    Correction,
    Different,
    Merge,
    Move,
    Note,
    Redo,
    Remove,
    Rename,
    Same,
    Split,
    Undo,
    contradictions,
    idle,
    in_force,
    replay,
    route,
)

KEYS = [f"{number}.jpg" for number in range(8)]
CLUSTER = np.array([0, 0, 0, 1, 1, 2, 2, 2])
SPLIT = Split(cluster=0, into=[0, 3], keys=[["0.jpg"], ["1.jpg", "2.jpg"]], centers=[[0.0, 0.0], [4.0, 0.0]])


def after(*entries: Correction) -> list[int]:
    return replay(KEYS, CLUSTER, 3, entries).cluster.tolist()


def test_each_entry_does_what_it_says() -> None:
    assert after() == CLUSTER.tolist()
    assert after(Merge(clusters=[2, 0])) == [2, 2, 2, 1, 1, 2, 2, 2]
    assert after(SPLIT) == [0, 3, 3, 1, 1, 2, 2, 2]
    assert after(Move(keys=["7.jpg", "3.jpg"], to=0)) == [0, 0, 0, 0, 1, 2, 2, 0]
    assert after(Remove(keys=["0.jpg"])) == [REMOVED, 0, 0, 1, 1, 2, 2, 2]
    assert after(Same(keys=["0.jpg", "7.jpg"]), Different(keys=["0.jpg", "1.jpg"])) == CLUSTER.tolist()
    both = replay(KEYS, CLUSTER, 3, [SPLIT, Merge(clusters=[1, 3]), Move(keys=["0.jpg"], to=4)])
    assert both.cluster.tolist() == [4, 1, 1, 1, 1, 2, 2, 2]
    assert (both.clusters, both.merged, both.by_hand.tolist()) == (5, {3}, [True] + 7 * [False])


def test_names_follow_a_merge_and_the_input_is_left_alone() -> None:
    before = CLUSTER.copy()
    state = replay(KEYS, CLUSTER, 3, [Rename(names={1: "cats", 2: "dogs"}), Merge(clusters=[0, 2])], {0: ""})
    assert state.names == {0: "", 1: "cats"} or state.names == {0: "dogs", 1: "cats"}
    assert replay(KEYS, CLUSTER, 3, [Rename(names={2: "dogs"}), Merge(clusters=[0, 2])]).names == {0: "dogs"}
    assert replay(KEYS, CLUSTER, 3, [Rename(names={2: "dogs"}), Rename(names={2: ""})]).names == {}
    assert (before == CLUSTER).all()
    with pytest.raises(UserError, match=r"image 'no.jpg' is not in this run"):
        after(Move(keys=["no.jpg"], to=0))


actions = st.sampled_from([Merge(clusters=[0, 1]), Merge(clusters=[2, 0]), Move(keys=["0.jpg"], to=1), Undo(), Redo()])


@given(st.lists(actions, max_size=12))
@settings(max_examples=200, deadline=None)
def test_undo_and_redo_are_those_of_every_editor(entries: list[Correction]) -> None:
    done: list[Correction] = []
    future: list[Correction] = []
    nothing: list[int] = []
    for position, entry in enumerate(entries):
        if isinstance(entry, Undo):
            if done:
                future.insert(0, done.pop())
            else:
                nothing.append(position)
        elif isinstance(entry, Redo):
            if future:
                done.append(future.pop(0))
            else:
                nothing.append(position)
        else:
            done, future = [*done, entry], []
    assert in_force(entries) == done
    assert idle(entries) == nothing
    assert after(*entries) == after(*done)


def test_new_images_go_where_merges_and_splits_lead() -> None:
    scaled = np.array([[0.4, 0], [3.8, 0], [9, 9]], dtype=np.float32)
    entries = [SPLIT, Merge(clusters=[2, 1]), Move(keys=["0.jpg"], to=1)]
    assert route(entries, np.array([0, 0, 1]), scaled).tolist() == [0, 3, 2]
    assert route([*entries, Undo(), Undo(), Undo()], np.array([0, 0, 1]), scaled).tolist() == [0, 0, 1]


def test_a_contradiction_by_way_of_others_is_named() -> None:
    chain = [Same(keys=["0.jpg", "1.jpg"]), Same(keys=["1.jpg", "2.jpg"]), Different(keys=["3.jpg", "2.jpg"])]
    assert contradictions(chain) == []
    apart = Different(keys=["2.jpg", "0.jpg"])
    assert contradictions([*chain, apart]) == [("2.jpg", "0.jpg")]
    assert contradictions([*chain, apart, Undo()]) == []


def test_entries_become_pairs_and_seeds() -> None:
    confidence = np.linspace(0.2, 0.9, 8).astype(np.float32)
    merge = constraints(KEYS, CLUSTER, confidence, 3, [Merge(clusters=[0, 1])])
    assert merge.must.tolist() == [[1, 3], [2, 4]]  # the surest of one with the surest of the other
    assert len(merge.cannot) == 0
    split = constraints(KEYS, CLUSTER, confidence, 3, [SPLIT])
    assert (split.must.tolist(), split.cannot.tolist()) == ([[1, 2]], [[0, 2]])
    moved = constraints(KEYS, CLUSTER, confidence, 3, [Move(keys=["0.jpg"], to=2)])
    assert (moved.must.tolist(), moved.cannot.tolist()) == ([[0, 7]], [[0, 2]])
    assert moved.cluster.tolist() == [2, 0, 0, 1, 1, 2, 2, 2]
    assert np.flatnonzero(moved.said).tolist() == [0, 7]  # and the one that speaks for where it went
    told = constraints(
        KEYS, CLUSTER, confidence, 3, [Same(keys=["6.jpg", "0.jpg"]), Different(keys=["0.jpg", "6.jpg"])]
    )
    assert (told.must.tolist(), told.cannot.tolist()) == ([], [[0, 6]])  # what was said last
    undone = constraints(KEYS, CLUSTER, confidence, 3, [Remove(keys=["0.jpg"]), Undo()])
    assert len(undone.must) == len(undone.cannot) == undone.said.sum() == 0


def test_what_no_longer_holds_in_the_end_teaches_nothing() -> None:
    confidence = np.linspace(0.1, 0.8, 8, dtype=np.float32)
    entries = [Move(keys=["0.jpg"], to=2), Move(keys=["7.jpg"], to=1), Remove(keys=["2.jpg"])]
    found = constraints(KEYS, CLUSTER, confidence, 3, entries)  # 7.jpg spoke for 0.jpg's new cluster, then left it
    assert found.must.tolist() == [[4, 7]]
    assert found.cluster.tolist() == [2, 0, NOWHERE, 1, 1, 2, 2, 1]
    assert np.flatnonzero(found.said).tolist() == [0, 4, 7]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (
            [Same(keys=["0.jpg", "1.jpg"]), Same(keys=["1.jpg", "5.jpg"]), Different(keys=["0.jpg", "5.jpg"])],
            r"0.jpg and 5.jpg are marked as different, and as the same by way of other images",
        ),
        (
            [Move(keys=["0.jpg"], to=1), Move(keys=["5.jpg"], to=0), Same(keys=["0.jpg", "5.jpg"])],
            r"0.jpg and 5.jpg are marked as the same and were put into different clusters; move one of them",
        ),
    ],
)
def test_a_conflict_is_named(entries: list[Correction], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        constraints(KEYS, CLUSTER, np.ones(8, dtype=np.float32), 3, entries)


def test_a_note_goes_where_its_cluster_goes() -> None:
    notes = [Note(text="look", cluster=2), Note(text="here", keys=["0.jpg"]), Note(text="stay", cluster=0)]
    state = replay(KEYS, CLUSTER, 3, [*notes, Merge(clusters=[1, 2])])
    assert [(note.text, note.cluster) for note in state.notes] == [("look", 1), ("here", None), ("stay", 0)]


def test_a_name_that_shows_nothing_is_none() -> None:
    names = {0: "  cats ", 1: " ", 2: "\u200b\u2060"}
    assert replay(KEYS, CLUSTER, 3, [Rename(names=names)]).names == {0: "cats"}


def test_an_image_kept_where_training_had_put_it_stays_with_the_others() -> None:
    confidence = np.linspace(0.2, 0.9, 8).astype(np.float32)
    kept = constraints(KEYS, CLUSTER, confidence, 3, [Move(keys=["0.jpg"], to=0)])
    assert (kept.must.tolist(), kept.cannot.tolist()) == ([[0, 2]], [])
