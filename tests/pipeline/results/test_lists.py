"""Lists of images worth a look: copies are found and relatives are not, close calls, strangers, and what to label."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture, write_cache
from photos import PhotoRun, short
from typer.testing import CliRunner

from temi.cli import app
from temi.pipeline.errors import UserError
from temi.pipeline.features.copies import exact_copies
from temi.pipeline.features.neighbors import exact_neighbors
from temi.pipeline.results.correct import correct
from temi.pipeline.results.corrections import REMOVED, Move, Remove
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.lists import (
    BLOCK_ROWS,
    duplicate_groups,
    evidence,
    full_cosines,
    joined,
    label_next,
    repeated,
    unsure_images,
    unusual_images,
    write_label_next,
)
from temi.pipeline.runs.train import train_heads


def test_copies_stand_together_and_relatives_do_not() -> None:
    rng = np.random.default_rng(0)
    rows = mixture(rows=400, dim=32, clusters=4, noise=0.6)[0]
    near = (rows[:20].astype(np.float32) + 0.003 * rng.standard_normal((20, 32))).astype(np.float16)
    both = np.concatenate([rows, near, rows[20:25]])
    neighbor, _ = exact_neighbors(both, 15)
    group = duplicate_groups(neighbor, full_cosines(both, neighbor))
    exact = repeated(exact_copies(torch.from_numpy(both))[1])
    found = joined(group, exact)
    copies = [*range(25), *range(400, 425)]
    assert (found[:20] == found[400:420]).all()
    assert (found[20:25] == found[420:425]).all()
    assert len(set(found[:25])) == 25
    assert (np.delete(found, copies) >= 0).mean() < 0.01
    assert set(np.flatnonzero(exact >= 0)) == {*range(20, 25), *range(420, 425)}


@pytest.mark.parametrize("length", [1e-4, 1.0, 300.0, 30_000.0])
def test_cosines_of_rows_of_any_length_are_those_of_numpy(length: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.2, 1, (3 * BLOCK_ROWS, 4))
    rows[1] = rows[0]
    embedding = (length * rows).astype(np.float16)
    neighbor = rng.integers(0, len(rows), (len(rows), 3)).astype(np.int32)
    neighbor[0, 0] = 1
    exact = embedding.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    found = full_cosines(embedding, neighbor)
    np.testing.assert_allclose(found, np.einsum("nd,nkd->nk", exact, exact[neighbor]), atol=2**-11)  # half a float16
    assert found[0, 0] == 1


def test_groupings_join_where_either_is_whole() -> None:
    assert joined(np.array([0, 0, -1, -1, 1, 1]), np.array([-1, 0, 0, -1, -1, -1])).tolist() == [0, 0, 0, -1, 1, 1]
    assert joined(np.full(3, -1), np.full(3, -1)).tolist() == [-1, -1, -1]


def test_close_calls_and_strangers_come_first() -> None:
    confidence, second = np.array([0.5, 0.9, 0.4, 0.6]), np.array([0.3, 0.1, 0.35, 0.2])
    assert unsure_images(confidence, second).tolist() == [2, 0]
    assert unusual_images(np.linspace(1, 0, 300)).tolist() == [299, 298, 297]


def test_what_to_label_is_spread_over_clusters_and_typical() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat([0, 1, 2], [60, 30, 10])
    cluster[59] = REMOVED
    scaled = rng.standard_normal((100, 4)).astype(np.float32)
    likeness = rng.random(100).astype(np.float32)
    one_each = label_next(scaled, cluster, likeness, 3)
    assert np.bincount(cluster[one_each], minlength=3).tolist() == [2, 1, 0]
    assert likeness[one_each[2]] == likeness[cluster == 1].max()
    many = label_next(scaled, cluster, likeness, 99)
    assert sorted(many) == [i for i in range(100) if i != 59]
    same = label_next(np.ones((100, 4), np.float32), cluster, likeness, 50)
    assert len(set(same)) == 50


@pytest.fixture
def run(photo_run: PhotoRun, tmp_path: Path) -> FinishedRun:
    shutil.copytree(photo_run.run, tmp_path / "run")
    return FinishedRun(tmp_path / "run")


def test_evidence_is_that_of_the_model(run: FinishedRun) -> None:
    known = evidence(run)
    probability = run.model.predict_proba(
        torch.from_numpy(run.cache.embedding()[run.trained["row"].to_numpy()])
    ).numpy()
    order = np.argsort(-probability, axis=1)
    np.testing.assert_array_equal(known.second, order[:, 1])
    np.testing.assert_allclose(known.second_confidence, np.sort(probability, axis=1)[:, -2], atol=1e-5)
    assert known.neighbor.shape == (44, 5)


def test_the_report_leaves_lists_beside_it_that_respect_corrections(run: FinishedRun, tmp_path: Path) -> None:
    known = evidence(run)
    [unusual, *_] = unusual_images(known.likeness)
    key = run.trained["key"].iat[int(unusual)]
    correct(run, [Move(keys=[key], to=3), Remove(keys=[run.trained["key"].iat[(int(unusual) + 1) % 44]])])
    done = CliRunner().invoke(app, ["report", str(run.folder), "--out", str(tmp_path / "out/page.html")])
    assert done.exit_code == 0, done.output
    with (tmp_path / "out/unusual.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["key"], rows[0]["name"], rows[0]["reason"]) == (key, "cluster 3", "unlike the others, blank")
    assert (tmp_path / "out/duplicates.csv").read_text().startswith("group,key,cluster,name,kind\n")
    assert (tmp_path / "out/unsure.csv").read_text().startswith("key,cluster,name,confidence,second,")


def test_a_file_of_ones_own_is_not_taken_for_a_list(run: FinishedRun, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "unsure.csv").write_text("my,own,notes\n")
    for command, *options in (["report", f"--out={mine}/page.html"], ["export", "--format=lists", f"--out={mine}"]):
        done = CliRunner().invoke(app, [command, str(run.folder), *options])
        assert done.exit_code == 2
        assert done.stderr.startswith(f"temi: {mine}/unsure.csv would be replaced, and temi did not write it; move it")
    assert [path.name for path in mine.iterdir()] == ["unsure.csv"]


@pytest.mark.parametrize(("command", "suffix"), [("report", ".html"), ("label-next", ".csv")])
def test_a_file_of_another_kind_is_not_replaced(command: str, suffix: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"a photo")
    done = CliRunner().invoke(app, [command, str(tmp_path), "--out", str(photo)])
    assert (done.exit_code, done.stderr) == (2, f"temi: --out {photo} must end in {suffix}\n")
    assert photo.read_bytes() == b"a photo"


def test_label_next_is_a_command(tmp_path: Path) -> None:
    train_heads(write_cache(tmp_path / "cache", mixture(rows=80)[0]), short(), tmp_path / "run")
    done = CliRunner().invoke(app, ["label-next", str(tmp_path / "run"), "--count", "6"])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert len({row["key"] for row in rows}) == 6
    done = CliRunner().invoke(app, ["label-next", str(tmp_path / "run"), "--count", "81"])
    assert done.exit_code == 2
    assert "has 80 images to choose from; ask for 1 to 80" in done.stderr


def test_label_next_asks_for_no_image_that_a_person_has_placed(run: FinishedRun, tmp_path: Path) -> None:
    keys = run.trained["key"].tolist()
    correct(run, [Move(keys=keys[:30], to=0), Remove(keys=keys[30:32])])
    write_label_next(run, None, tmp_path / "next.csv")
    with (tmp_path / "next.csv").open(newline="") as file:
        assert sorted(row["key"] for row in csv.DictReader(file)) == sorted(keys[32:])
    with pytest.raises(UserError, match=r"--count 13: .* has 12 images to choose from; ask for 1 to 12"):
        write_label_next(run, 13, None)
    correct(run, [Move(keys=keys[32:], to=0)])
    with pytest.raises(UserError, match="a person has placed every image, so no label is left to ask for"):
        write_label_next(run, None, None)


def test_label_next_takes_all_images_where_there_are_fewer_than_by_default(photo_run: PhotoRun, tmp_path: Path) -> None:
    write_label_next(FinishedRun(photo_run.run), None, tmp_path / "next.csv")
    assert len((tmp_path / "next.csv").read_text().splitlines()) == 1 + 44
