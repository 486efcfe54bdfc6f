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

from temi.pipeline.errors import UserError
from temi.pipeline.results.correct import correct, read_file, split_rows
from temi.pipeline.results.corrections import CORRECTIONS, Merge, Move, Remove, Rename, Split, Undo, read_corrections
from temi.pipeline.results.export import export_folders, export_table
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.predict import predict

TEMI = Path(sys.executable).with_name("temi")


@pytest.fixture
def run(photo_run: PhotoRun, tmp_path: Path) -> FinishedRun:
    return FinishedRun(shutil.copytree(photo_run.run, tmp_path / "run"))


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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000 twos", "0001", "0003", "removed"]
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
