"""`temi correct` takes a whole file or nothing, and what was corrected shows in exports, predictions and names."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from photos import PhotoRun
from typer.testing import CliRunner

from temi.cache.words import counted
from temi.cli import app
from temi.pipeline.errors import UserError
from temi.pipeline.images.left_out import EXPORTED
from temi.pipeline.registry import EXPORTS
from temi.pipeline.results.constraints import read_constraints
from temi.pipeline.results.correct import correct, read_file, split_rows
from temi.pipeline.results.corrections import Merge, Move, Note, Remove, Rename, Split, Undo
from temi.pipeline.results.corrections_file import CORRECTIONS, read_corrections
from temi.pipeline.results.export import export_folders, export_table
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.formats import Wanted
from temi.pipeline.results.lists import write_label_next
from temi.pipeline.results.predict import predict

TEMI = Path(sys.executable).with_name("temi")


@pytest.fixture
def run(photo_run: PhotoRun, tmp_path: Path) -> FinishedRun:
    return FinishedRun(shutil.copytree(photo_run.run, tmp_path / "run"))


@pytest.mark.long
def test_the_command_takes_all_or_nothing(run: FinishedRun, tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    good = [{"action": "rename", "names": {"1": "ones"}}, {"action": "merge", "clusters": [0, 1], "who": "ann"}]
    file.write_text("\n".join(map(json.dumps, good)))
    done = subprocess.run([TEMI, "correct", run.folder, file, "--who", "bob"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [entry.who for entry in read_corrections(run.folder)] == ["bob", "ann"]
    assert all(entry.when for entry in read_corrections(run.folder))
    before = (run.folder / CORRECTIONS).read_bytes()
    for bad, sentence in {
        '{"action": "merge", "clusters": [0, 1]}': "correction 2 (merge): cluster 1 was merged into another",
        '{"action": "fly"}': "line 2 of",
        '{"action": "redo"}': "correction 2 (redo): there is nothing to redo",
        '{"action": "move", "keys": ["x"], "to": 9}': "correction 2 (move): cluster 9 does not exist",
        '{"action": "rename", "names": {"2": "twos"}}\n{"action": "rename", "names": {"0": "twos"}}': "both be called",
    }.items():
        file.write_text('{"action": "rename", "names": {"0": "new"}}\n' + bad)
        with pytest.raises(UserError) as refused:
            correct(run, read_file(file))
        assert sentence in str(refused.value)
        assert (run.folder / CORRECTIONS).read_bytes() == before
    done = subprocess.run([TEMI, "correct", run.folder, file], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("temi: correction 3 (rename): clusters 0 and 2 would both be called 'twos'")
    assert "Traceback" not in done.stderr


def test_a_file_that_is_taken_twice_counts_once(run: FinishedRun, tmp_path: Path) -> None:
    keys = run.trained["key"].tolist()
    said = [
        Rename(names={1: " ones"}, when="2026-01-01T00:00:00.001Z"),
        Note(text="look", cluster=0, when="2026-01-01T00:00:01.002Z"),
        Split(cluster=0, parts=2, when="2026-01-01T00:00:02.003Z"),
        Remove(keys=keys[:1], when="2026-01-01T00:00:03.004Z"),
        Undo(when="2026-01-01T00:00:04.005Z"),
        Undo(when="2026-01-01T00:00:04.005Z"),  # a fast hand: in one file, equal entries are several
    ]
    assert len(correct(run, said, "ann")) == 6
    before = (run.folder / CORRECTIONS).read_bytes()
    assert correct(run, said, "bob") == []
    assert correct(run, read_file(run.folder / CORRECTIONS)) == []
    assert (run.folder / CORRECTIONS).read_bytes() == before
    more = [said[1], said[1].model_copy(update={"text": "again"}), Note(text="look", cluster=0)]
    assert [entry.text for entry in correct(run, more) if isinstance(entry, Note)] == ["again", "look"]
    timeless = [Note(text="look", cluster=0)]  # whoever says no time may say a thing twice
    assert len(correct(run, timeless)) == 1


def test_the_command_tells_what_the_run_had_already(run: FinishedRun, tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    when = "2026-01-01T00:00:00.001Z"
    file.write_text(json.dumps({"action": "note", "cluster": 0, "text": "look", "when": when}))
    first = CliRunner().invoke(app, ["correct", str(run.folder), str(file)])
    assert "1 correction more\n" in first.output
    second = CliRunner().invoke(app, ["correct", str(run.folder), str(file)])
    assert "0 corrections more; 1 left out, which the run has from that very time\n" in second.output
    assert len(read_corrections(run.folder)) == 1


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    said = [{"action": "note", "cluster": 0, "text": "a\u2028b\x85c"}, {"action": "undo"}]
    file.write_text("\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in said), encoding="utf-8", newline="")
    note, undo = read_file(file)
    assert (note.text, type(undo)) == ("a\u2028b\x85c", Undo)


def test_exports_predictions_and_names_respect_them(run: FinishedRun, photo_run: PhotoRun, tmp_path: Path) -> None:
    keys = run.trained["key"].tolist()
    correct(run, [Rename(names={2: "twos"}), Merge(clusters=[0, 2]), Move(keys=keys[:2], to=3), Remove(keys=keys[2:3])])
    export_table(run, tmp_path / "t.csv", "csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert {rows[key]["name"] for key in keys[:2]} == {"cluster 3"}
    assert (rows[keys[2]]["cluster"], rows[keys[2]]["name"]) == ("-1", "removed")
    assert not [row for row in rows.values() if row["cluster"] == "2"]
    assert rows[keys[0]]["confidence"] == "1.0000"
    assert export_folders(run, tmp_path / "out", "symlink") == 44
    marker, *folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert marker == EXPORTED
    assert folders == ["0000 twos", "0001", "0003", "removed"]
    predict(run.folder, str(photo_run.cache), tmp_path / "p.parquet")
    found = pd.read_parquet(tmp_path / "p.parquet").dropna(subset=["cluster"])
    trained = run.trained["cluster"].replace(2, 0)
    assert found["cluster"].astype(int).tolist() == trained.tolist()
    assert set(found.loc[found["cluster"] == 0, "name"]) == {"twos"}
    correct(run, [Undo()] * 4)
    assert run.assignments.equals(run.trained)


def test_a_split_holds_for_new_images_as_for_those_it_was_made_of(
    run: FinishedRun, photo_run: PhotoRun, tmp_path: Path
) -> None:
    largest = int(run.trained["cluster"].mode()[0])
    [entry] = correct(run, [Split(cluster=largest, parts=3)])
    assert isinstance(entry, Split)
    assert entry.into == [largest, 3, 4]
    assert [len(part) for part in entry.keys] == sorted((len(part) for part in entry.keys), reverse=True)
    predict(run.folder, str(photo_run.cache), tmp_path / "p.parquet")
    found = pd.read_parquet(tmp_path / "p.parquet").dropna(subset=["cluster"])
    assert found["cluster"].astype(int).tolist() == run.assignments["cluster"].tolist()


def test_parts_are_the_groups_that_are_there() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [30, 20, 10])
    rows = (np.eye(3)[truth] * 5 + rng.normal(0, 0.3, (60, 3))).astype(np.float32)
    part, center = split_rows(rows, 3)
    assert part.tolist() == truth.tolist()
    np.testing.assert_allclose(center, [rows[truth == p].mean(0) for p in range(3)], atol=1e-4)
    with pytest.raises(UserError, match="too much alike"):
        split_rows(np.ones((9, 3), np.float32), 2)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"action": "split", "cluster": 1, "parts": 2}', "this split does not hold the parts.*temi correct RUN FILE"),
        ('{"action": "merge", "clusters": [1, 1]}', "cluster 1 is named twice; name each once"),
        ('{"action": "merge", "clusters": [1, 700]}', "cluster 700 does not exist; they are 0 to 2"),
        ('{"action": "move", "keys": ["blue/0.jpg"], "to": 40}', "cluster 40 does not exist; they are 0 to 2"),
        ('{"action": "move", "keys": ["no.jpg"], "to": 1}', "image 'no.jpg' is not in this run"),
        ('{"action": "rename", "names": {"2": "ones"}}', "clusters 0 and 2 would both be called 'ones'"),
        ('{"action": "redo"}', "there is nothing to redo; take the line out"),
        ('{"action": "undo"}\n{"action": "undo"}', "there is nothing to undo; take the line out"),
    ],
)
def test_a_line_made_by_hand_is_refused_as_correct_would(run: FinishedRun, line: str, sentence: str) -> None:
    (run.folder / CORRECTIONS).write_text('{"action": "rename", "names": {"0": "ones"}}\n\n' + line)
    last = 3 + line.count("\n")
    with pytest.raises(UserError, match=f"line {last} of .*{CORRECTIONS}: {sentence}"):
        _ = run.assignments
    with pytest.raises(UserError, match=f"line {last} of .*{CORRECTIONS}: {sentence}"):
        correct(run, [Undo()])
    if "no.jpg" not in line:  # what needs no assignments knows of no image
        with pytest.raises(UserError, match=f"line {last} of .*{CORRECTIONS}: {sentence}"):
            _ = run.names


def test_a_cluster_that_does_not_exist_is_refused_with_those_that_do(run: FinishedRun) -> None:
    correct(run, [Merge(clusters=[0, 1])])
    with pytest.raises(UserError, match="cluster 9 does not exist; they are 0 to 2, without 1"):
        correct(run, [Merge(clusters=[0, 9])])


def test_names_that_look_alike_or_show_nothing_are_refused(run: FinishedRun) -> None:
    correct(run, [Rename(names={0: " cats "})])
    assert run.names[0] == "cats"
    for name in (" cats", "cats\u200b"):
        with pytest.raises(UserError, match="clusters 0 and 1 would both be called 'cats'"):
            correct(run, [Rename(names={1: name})])
    with pytest.raises(UserError, match="shows nothing; write a name that can be read"):
        correct(run, [Rename(names={1: "\u200b\u2060"})])
    correct(run, [Rename(names={0: " "})])
    assert run.names == ["", "", ""]


def test_a_note_on_nothing_and_a_folder_are_refused(run: FinishedRun) -> None:
    with pytest.raises(UserError, match="a note is on a cluster or on images; give it cluster or keys"):
        correct(run, [Note(text="look")])
    assert not (run.folder / CORRECTIONS).exists()
    with pytest.raises(UserError, match="is a folder; give a file of corrections"):
        read_file(run.folder)


def test_clusters_are_counted_as_they_were_left(run: FinishedRun, tmp_path: Path) -> None:
    cluster = run.trained["cluster"]
    one, other = cluster.value_counts().index[:2].tolist()
    correct(run, [Merge(clusters=[one, other]), Remove(keys=run.trained["key"][:1].tolist())])
    left = cluster.nunique() - 1
    assert f"44 images in {counted(left, 'cluster')}" in repr(run)
    assert f"44 images in {counted(left, 'cluster')}" in run._repr_html_()
    said = EXPORTS["csv"](run, tmp_path / "table.csv", Wanted())
    empty = 3 - cluster.nunique()
    assert said.startswith(
        f"{tmp_path / 'table.csv'}: 43 images in 2 clusters" + (f", {empty} of them empty" if empty else "")
    )


def test_nothing_is_left_to_label_or_to_train(run: FinishedRun) -> None:
    correct(run, [Remove(keys=run.trained["key"].tolist())])
    with pytest.raises(UserError, match="all images were taken out of their clusters; put back those to choose from"):
        write_label_next(run, 1, None)
    with pytest.raises(UserError, match="all 44 images were taken out of their clusters, which leaves none to train"):
        read_constraints(run.folder)
    with pytest.raises(UserError, match="nope does not exist; give the folder of an earlier run"):
        read_constraints(run.folder / "nope")
