"""Names survive, appear wherever a cluster is shown, and a table that does not fit is refused by line."""

import csv
import shutil
from pathlib import Path

import pandas as pd
import pytest
from photos import PhotoRun
from typer.testing import CliRunner

from temi.cache import EmbeddingCache
from temi.cli import app
from temi.pipeline.config import load_config
from temi.pipeline.errors import UserError
from temi.pipeline.images.left_out import EXPORTED
from temi.pipeline.results.correct import correct
from temi.pipeline.results.corrections import Merge, Rename, Undo, replay_clusters
from temi.pipeline.results.corrections_file import append_corrections, read_corrections
from temi.pipeline.results.export import export_folders
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import NAMES, first_names, set_names
from temi.pipeline.results.predict import predict
from temi.pipeline.runs.train import train_heads


def names_of(run: Path) -> list[str]:
    """The names of three clusters, from the files that a `FinishedRun` reads them from."""
    known = replay_clusters(3, read_corrections(run), first_names(run, 3)).names
    return [known.get(cluster, "") for cluster in range(3)]


def table(folder: Path, text: str) -> Path:
    path = folder / "names.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_names_are_kept_changed_and_taken_away(tmp_path: Path) -> None:
    assert names_of(tmp_path) == ["", "", ""]
    assert set_names(tmp_path, table(tmp_path, "cluster,name\n2,Käse\n0,cars"), 3) == ["cars", "", "Käse"]
    assert set_names(tmp_path, table(tmp_path, "\ufeffname,cluster\ncats,1\n,0\n"), 3) == ["", "cats", "Käse"]
    assert names_of(tmp_path) == ["", "cats", "Käse"]
    append_corrections(tmp_path, [Undo()])  # a table of names is one correction
    assert names_of(tmp_path) == ["cars", "", "Käse"]


def test_names_of_earlier_versions_are_kept(tmp_path: Path) -> None:
    (tmp_path / NAMES).write_text('{"0": "cars", "2": "cats"}')
    assert set_names(tmp_path, table(tmp_path, "cluster,name\n0,vans"), 3) == ["vans", "", "cats"]
    assert names_of(tmp_path) == ["vans", "", "cats"]
    (tmp_path / NAMES).write_text('{"0": "vans", "2": "cluster 1"}')  # which could be said then
    assert set_names(tmp_path, table(tmp_path, "cluster,name\n0,vans\n1,dogs\n2,cluster 1"), 3)[1:] == [
        "dogs",
        "cluster 1",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,name\n0,a\n", "needs a first line with the columns cluster and name"),
        ("", "needs a first line"),
        ("cluster,name\n3,a\n", r"line 2 of .*names.csv: '3' is not a cluster of this run; they are 0 to 2"),
        ("cluster,name\n-1,a\n", "'-1' is not a cluster"),
        ("cluster,name\n0,a\n0,b\n", r"line 3 of .*names.csv names cluster 0 again"),
        ("cluster,name\n0,a\n1,a\n", "clusters 0 and 1 would both be called 'a'"),
        ("cluster,name\n1,before\n", "clusters 0 and 1 would both be called 'before'"),
        ("cluster,name\n0," + "x" * 121, "at most 120 characters"),
        ('cluster,name\n0,"a\nb"\n', "line break or control character"),
        ("cluster,name\n0,removed\n", "line 2 of .*: cluster 0 cannot be called 'removed', as images in no"),
        ("cluster,name\n0,cluster 2\n", "cluster 0 cannot be called 'cluster 2', as another cluster is"),
        ("cluster,name\n0,Removed\n", "cluster 0 cannot be called 'Removed', as images in no cluster are"),
        ("cluster,name\n0,Cluster 2\n", "cluster 0 cannot be called 'Cluster 2', as another cluster is"),
    ],
)
def test_a_table_that_does_not_fit_changes_nothing(tmp_path: Path, text: str, sentence: str) -> None:
    set_names(tmp_path, table(tmp_path, "cluster,name\n0,before\n"), 3)
    with pytest.raises(UserError, match=sentence):
        set_names(tmp_path, table(tmp_path, text), 3)
    assert names_of(tmp_path) == ["before", "", ""]


def test_a_cluster_may_be_called_by_its_own_number(tmp_path: Path) -> None:
    assert set_names(tmp_path, table(tmp_path, "cluster,name\n2,cluster 2\n0,cluster 07\n"), 3)[2] == "cluster 2"


def test_names_of_today_that_are_headings_are_kept_and_not_given_again(photo_run: PhotoRun, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photo_run.run, tmp_path / "run"))
    append_corrections(folder, [Rename(names={1: "Cluster 0", 2: "Removed"})])  # which could be said before
    run = FinishedRun(folder)
    assert run.names == ["", "Cluster 0", "Removed"]
    assert set(run.assignments["cluster"]) <= {0, 1, 2}
    assert set_names(folder, table(tmp_path, "cluster,name\n0,red\n1,Cluster 0\n2,Removed\n"), 3) == [
        "red",
        "Cluster 0",
        "Removed",
    ]
    for name in ("removed", "REMOVED", "removed\u200b", "CLUSTER 2"):
        with pytest.raises(UserError, match="cluster 0 cannot be called"):
            correct(run, [Rename(names={0: name})])
    assert correct(run, [Rename(names={0: "7"})])  # of the digits


def test_clusters_with_a_name_are_counted_among_those_that_are_left(photo_run: PhotoRun, tmp_path: Path) -> None:
    run = shutil.copytree(photo_run.run, tmp_path / "run")
    append_corrections(run, [Merge(clusters=[0, 1])])
    result = CliRunner().invoke(app, ["names", str(run), str(table(tmp_path, "cluster,name\n0,both\n"))])
    assert "1 of 2 clusters have a name" in result.stdout


def test_a_cluster_that_was_merged_away_gets_no_name(tmp_path: Path) -> None:
    append_corrections(tmp_path, [Merge(clusters=[0, 1])])
    with pytest.raises(
        UserError, match=r"names\.csv: cluster 1 was merged into another; name that, or undo the merger"
    ):
        set_names(tmp_path, table(tmp_path, "cluster,name\n1,gone\n"), 3)
    assert set_names(tmp_path, table(tmp_path, "cluster,name\n0,both\n1,\n"), 3) == ["both", "", ""]


def test_files_that_are_missing_binary_or_damaged_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*gone.csv: no such file"):
        set_names(tmp_path, tmp_path / "gone.csv", 3)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        set_names(tmp_path, tmp_path / "binary.csv", 3)
    for content in ("{", "[1]", '{"7": "x"}', '{"0": 5}'):
        (tmp_path / NAMES).write_text(content)
        with pytest.raises(UserError):
            first_names(tmp_path, 3)


def test_names_appear_in_predict_and_exports_and_survive_a_resume(photo_run: PhotoRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(photo_run.run, run)
    template = CliRunner().invoke(app, ["names", str(run)])
    assert template.exit_code == 0, template.output
    rows = list(csv.DictReader(template.stdout.splitlines()))
    assert [int(row["cluster"]) for row in rows] == [0, 1, 2]
    sizes = [int(row["images"]) for row in rows]
    assert sum(sizes) == 44
    assert sizes == sorted(sizes, reverse=True)
    given = template.stdout.replace("0,,", "0,red <b>things</b> / ../,", 1)
    result = CliRunner().invoke(app, ["names", str(run), str(table(tmp_path, given))])
    assert result.exit_code == 0, result.output
    assert "1 of 3 clusters have a name" in result.stdout
    train_heads(EmbeddingCache.open(photo_run.cache), load_config(run / "config.toml"), run)
    predict(run, str(photo_run.cache), tmp_path / "p.csv")
    found = pd.read_csv(tmp_path / "p.csv").dropna(subset=["cluster"])
    assert set(found.loc[found["cluster"] == 0, "name"]) == {"red <b>things</b> / ../"}
    export_folders(FinishedRun(run), tmp_path / "out", "symlink")
    marker, *folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert marker == EXPORTED
    assert folders == ["0000 red bthingsb", "0001", "0002"]
