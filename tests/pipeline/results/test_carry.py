"""What a person said of a run lasts: training keeps it, with other clusters and more images too; names go along."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixtures import mixture, write_cache

import temi
from temi.pipeline.errors import UserError
from temi.pipeline.results.carry import Carried, Kept, carry_over
from temi.pipeline.results.constraints import clusters_left, read_constraints
from temi.pipeline.results.correct import correct
from temi.pipeline.results.corrections import (
    REMOVED,
    Different,
    Merge,
    Move,
    Note,
    Remove,
    Rename,
    Same,
    Split,
)
from temi.pipeline.results.corrections_file import CORRECTIONS
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.start.agreement import contingency

TEMI = Path(sys.executable).with_name("temi")
SHORT = ["heads.count=4", "neighbors.k=8", "train.epochs=0", "train.min_steps=100", "train.tensorboard=false"]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    settings = [word for setting in SHORT for word in ("--set", setting)]
    return subprocess.run([TEMI, "train-heads", *map(str, arguments), *settings], capture_output=True, text=True)


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CACHE of 240 rows, a run of 4 clusters, and corrections that put 12 rows of cluster 0 into cluster 1."""
    home = tmp_path_factory.mktemp("corrected")
    embedding, _ = mixture(rows=300, clusters=4, noise=0.6)
    write_cache(home / "cache", embedding[:240])
    write_cache(home / "more", embedding)
    run = temi.train_heads(home / "cache", home / "run", 4, SHORT)
    rows = run.trained[run.trained["cluster"] == 0]["key"].tolist()
    asked = [
        Move(keys=rows[:12], to=1),
        Remove(keys=[rows[20]]),
        Rename(names={1: "ones", 2: "twos"}),
        Same(keys=[rows[0], rows[1]]),
        Different(keys=[rows[0], rows[30]]),
    ]
    correct(run, asked, "ann")
    return home


def moved(home: Path) -> list[str]:
    return json.loads((home / "run" / CORRECTIONS).read_text().splitlines()[0])["keys"]


@pytest.mark.parametrize(("cache", "clusters"), [("cache", None), ("cache", 6), ("more", None)])
def test_training_keeps_what_a_person_said(corrected: Path, tmp_path: Path, cache: str, clusters: int | None) -> None:
    arguments = {"clusters": clusters, "settings": SHORT, "corrections": corrected / "run"}
    run, before = temi.train_heads(corrected / cache, tmp_path / "run", **arguments), temi.open_run(corrected / "run")
    assert run.model.clusters == (clusters or 4)
    keys, learned = moved(corrected), run.trained.set_index("key")["cluster"]
    ones = before.corrected.cluster == 1
    home = learned[before.trained["key"][ones]].value_counts().idxmax()
    assert (learned[keys] == home).mean() > 0.5  # by training alone; of a run without corrections, none
    table = run.assignments.set_index("key")["cluster"]
    assert (table == REMOVED).sum() == 1
    if clusters is None:
        assert run.names[home] == "ones"
        assert set(table[keys]) == {home}
    again = temi.train_heads(corrected / cache, tmp_path / "run", **arguments)
    assert len(again.corrections) == len(run.corrections)  # nothing twice


def test_the_number_of_a_cluster_is_no_name_to_take_along(corrected: Path, tmp_path: Path) -> None:
    earlier, later = (FinishedRun(shutil.copytree(corrected / "run", tmp_path / name)) for name in ("a", "b"))
    for run in (earlier, later):
        (run.folder / CORRECTIONS).unlink()
    correct(earlier, [Rename(names={1: "cluster 1", 2: "twos"})])
    assert carry_over(earlier, later).lost == []
    assert later.names == ["", "", "twos", ""]


@pytest.mark.long
def test_the_command_says_what_it_kept_and_takes_no_other_corrections_up(corrected: Path, tmp_path: Path) -> None:
    arguments = [corrected / "cache", "--out", tmp_path / "run"]
    made = command(*arguments, "--corrections", corrected / "run" / CORRECTIONS)
    assert made.returncode == 0, made.stderr
    assert "corrections: of 12 images placed by hand training put" in made.stdout
    assert "names: 2 taken along" in made.stdout
    refused = command(*arguments, "--clusters", 4)
    assert refused.returncode == 2
    assert "was started with other corrections, or without any" in refused.stderr


def test_a_file_that_is_no_runs_is_a_sentence(corrected: Path, tmp_path: Path) -> None:
    loose = tmp_path / "mine.jsonl"
    loose.write_text('{"action": "undo"}\n')
    for file, sentence in [
        (loose, r"mine.jsonl is not the corrections.jsonl of a run.*`temi correct RUN mine.jsonl`"),
        (tmp_path, r"is not a finished run"),
    ]:
        with pytest.raises(UserError, match=sentence):
            temi.train_heads(corrected / "cache", tmp_path / "run", corrections=file)
    assert not (tmp_path / "run").exists()


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 9))
def test_images_put_into_one_cluster_stay_in_one(seed: int, clusters: int, trained: int) -> None:
    """Whatever training made of them; of more clusters than were left, in parts of that cluster."""
    random = np.random.default_rng(seed)
    then, now = random.integers(clusters, size=60), random.integers(trained, size=60)
    shared = contingency(then, now, (clusters, trained))
    kept = Kept(then, np.arange(60), random.random(60) < 0.3, now, shared)
    divided = len(np.unique(now)) > len(np.unique(then))
    for cluster in range(clusters):
        for image in np.flatnonzero(kept.by_hand & (then == cluster)):
            found = shared[:, kept.left[image]]
            assert kept.left[image] == kept.home[cluster] or (divided and found[cluster] == found.max())


@pytest.mark.parametrize("kept", [False, True])
def test_the_estimator_keeps_corrections(tmp_path: Path, kept: bool) -> None:
    embedding, _ = mixture(rows=200, clusters=3, noise=0.6)
    rows, settings = embedding.astype(np.float32), [*SHORT, "train.min_steps=200"]
    first = temi.TemiClusterer(3, settings=settings, run=tmp_path).fit(rows)
    stay, go = np.flatnonzero(first.labels_ == 1), np.flatnonzero(first.labels_ == 0)[:10]
    out = int(np.flatnonzero(first.labels_ == 2)[0])
    said = [Move(keys=[str(row) for row in go], to=1), Remove(keys=[str(out)])]
    correct(FinishedRun(tmp_path / "run"), said)
    new = tmp_path / "again" if kept else None
    again = temi.TemiClusterer(3, settings=settings, corrections=tmp_path / "run", run=new).fit(rows)
    learned = again.predict(rows)
    home = np.bincount(learned[stay]).argmax()
    assert (learned[go] == home).mean() > 0.9  # by training alone
    assert (again.labels_[go] == home).all()
    assert again.labels_[out] == REMOVED
    assert again.confidence_[out] == 1
    others = np.setdiff1d(np.arange(200), [*go, out])
    assert (again.labels_[others] == learned[others]).all()
    if new is not None:
        table = FinishedRun(new / "run").assignments
        assert table["cluster"].tolist() == again.labels_.tolist()
        np.testing.assert_allclose(table["confidence"], again.confidence_, atol=1e-6)


def bare(corrected: Path, tmp_path: Path) -> tuple[FinishedRun, FinishedRun]:
    """The run and its twin, both without corrections."""
    earlier, later = (FinishedRun(shutil.copytree(corrected / "run", tmp_path / name)) for name in ("a", "b"))
    for run in (earlier, later):
        (run.folder / CORRECTIONS).unlink()
    return earlier, later


def test_a_placement_is_kept_where_training_agrees_and_by_the_next_run_too(corrected: Path, tmp_path: Path) -> None:
    earlier, later = bare(corrected, tmp_path)
    third = FinishedRun(shutil.copytree(later.folder, tmp_path / "c"))
    table = earlier.trained
    stays = table["key"][table["cluster"] == 1].tolist()[:5]
    goes = table["key"][table["cluster"] == 0].tolist()[:2]
    correct(earlier, [Move(keys=stays + goes, to=1)])
    for before, run in ((earlier, later), (later, third)):
        carried = carry_over(before, run)
        assert (carried.placed, carried.learned) == (7, 5)
        placed = run.assignments.set_index("key").loc[stays + goes]
        assert set(placed["cluster"]) == {1}
        assert set(placed["confidence"]) == {1.0}


def test_a_mark_that_training_broke_is_not_contradicted(corrected: Path, tmp_path: Path) -> None:
    earlier, later = bare(corrected, tmp_path)
    keys = earlier.trained["key"][earlier.trained["cluster"] == 1].tolist()
    correct(earlier, [Merge(clusters=[2, 3]), Move(keys=keys[:3], to=1), Same(keys=keys[:2])])
    table = later.trained  # three clusters were left, and here cluster 1 is in two parts
    table.loc[table["cluster"] == 3, "cluster"] = 2
    table.loc[table["key"].isin(keys[::2]), "cluster"] = 3
    table.to_parquet(later.folder / "assignments.parquet", index=False)
    carried = carry_over(earlier, later)
    assert (carried.placed, len(carried.broken)) == (3, 1)
    read_constraints(later.folder)


def test_a_note_is_carried_to_where_its_cluster_is(corrected: Path, tmp_path: Path) -> None:
    earlier, later = bare(corrected, tmp_path)
    every = earlier.trained["key"][earlier.trained["cluster"] == 3].tolist()
    asked = [Note(text="look", cluster=2), Merge(clusters=[0, 2]), Note(text="gone", cluster=3), Remove(keys=every)]
    correct(earlier, asked)
    carried = carry_over(earlier, later)
    [note] = later.corrected.notes
    assert (note.text, note.cluster) == ("look", int(np.argmax(np.bincount(later.trained["cluster"][home(earlier)]))))
    assert "no cluster is left for what was noted on one: gone" in str(carried)


def test_what_was_said_of_images_that_are_not_there_is_lost_in_no_silence(corrected: Path, tmp_path: Path) -> None:
    earlier, later = bare(corrected, tmp_path)
    keys = earlier.trained["key"][earlier.trained["cluster"] == 0].tolist()
    asked = [
        Move(keys=keys[:6], to=1),
        Remove(keys=keys[6:10]),
        Note(text="blurred", keys=keys[:1]),
        Note(text="sharp", keys=keys[11:12]),
        Same(keys=keys[10:12]),
        Different(keys=[keys[11], keys[13]]),
    ]
    correct(earlier, asked)
    table = later.trained
    gone = [*keys[:4], *keys[6:9], keys[10]]
    table.loc[table["key"].isin(gone), "key"] = [f"renamed/{key}" for key in gone]
    table.to_parquet(later.folder / "assignments.parquet", index=False)
    later = FinishedRun(later.folder)
    said = str(carry_over(earlier, later)).splitlines()
    assert said[0].startswith("corrections: of 2 images placed by hand")
    assert said[1] == "taken along, too: 1 removed image, 1 mark, 1 note"
    assert said[2] == (
        f"note: 8 images that a person corrected are not in this run: {', '.join(gone[:5])}, and 3 more; lost with "
        "that: 4 placements, 3 removals, 1 mark, 1 note; an image is known by its path, so a renamed file is another "
        "image"
    )


def test_where_every_image_is_there_nothing_is_said_to_be_lost(corrected: Path, tmp_path: Path) -> None:
    earlier, later = (FinishedRun(shutil.copytree(corrected / "run", tmp_path / name)) for name in ("a", "b"))
    (later.folder / CORRECTIONS).unlink()
    said = str(carry_over(earlier, later))
    assert "taken along, too: 1 removed image, 2 marks" in said
    assert "not in this run" not in said


def home(run: FinishedRun) -> np.ndarray:
    return run.corrected.cluster == 0


def test_the_clusters_of_the_run_before_are_nobodys_wish(corrected: Path) -> None:
    _, told = read_constraints(corrected / "run")
    config = corrected / "run/config.toml"
    assert clusters_left(told, config, [], inherited=True) == ["heads.clusters=4"]
    assert clusters_left(told, config, []) == []  # a person's own file
    asked = [" heads.clusters = 6"]
    assert clusters_left(told, config, asked, inherited=True) == asked


@pytest.mark.long
def test_a_continued_run_has_the_parts_that_were_made_and_counts_who_moved(corrected: Path, tmp_path: Path) -> None:
    run = FinishedRun(shutil.copytree(corrected / "run", tmp_path / "run"))
    gone = run.trained["key"][run.assignments["cluster"] == 2].tolist()[:20]
    correct(run, [Split(cluster=3, parts=2), Remove(keys=gone)])
    made = command(corrected / "cache", "--from", run.folder, "--corrections", run.folder, "--out", tmp_path / "next")
    assert made.returncode == 0, made.stderr
    later = FinishedRun(tmp_path / "next")
    assert json.loads((tmp_path / "next/training.json").read_text())["used_clusters"] == 5
    before, now = run.assignments.set_index("key")["cluster"], later.trained.set_index("key")["cluster"]
    stays = before[before != REMOVED].index
    record = json.loads((tmp_path / "next/continued.json").read_text())
    assert record["moved"] == (before[stays] != now[stays]).sum()


def test_marks_that_do_not_hold_are_told_with_what_to_do() -> None:
    said = str(Carried(2, 2, 0, [], ["a.jpg and b.jpg are the same"]))
    assert "note: marks that training follows only as far as the images let it, and that do not hold: a.jpg and" in said
    assert said.endswith("are the same; where a mark is right, move one of the two (temi serve RUN)")
