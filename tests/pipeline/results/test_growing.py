"""A folder that grows: rows stay, new images follow, a run is continued with the same numbers and names."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photos import COLORS, PhotoRun, photo, short

from temi.cache import CacheError, EmbeddingCache, Manifest
from temi.cache.info import summarize
from temi.pipeline.commands.console import failures
from temi.pipeline.commands.train import _open_before
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.tables import evaluate_run
from temi.pipeline.images import open_source
from temi.pipeline.images.grown import GONE, Listing, find_rows, read_listing
from temi.pipeline.images.recorded import open_images
from temi.pipeline.report.pages import overview
from temi.pipeline.results.continuing import corrections_left_behind
from temi.pipeline.results.correct import correct
from temi.pipeline.results.corrections import Merge, Move, Note, Remove, Rename, Same, Split
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import set_names
from temi.pipeline.results.predict import predict
from temi.pipeline.runs.checks import rows_since
from temi.pipeline.runs.continued import match_numbers
from temi.pipeline.runs.train import train_heads

TEMI = Path(sys.executable).with_name("temi")


def temi(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TEMI, *map(str, words)], capture_output=True, text=True, timeout=600)


def settings(run: PhotoRun, **more: object) -> EmbedConfig:
    fixed = {"backbone": str(run.weights), "views": 0, "batch_size": 8, "workers": 0, "device": "cpu"}
    return EmbedConfig.model_validate(fixed | more)


@pytest.fixture
def grown(photo_run: PhotoRun, tmp_path: Path) -> PhotoRun:
    """The run of photos beside a copy of its folder and cache, after a day: 6 new, 1 removed, 1 changed photo."""
    photos, cache = tmp_path / "photos", tmp_path / "cache"
    shutil.copytree(photo_run.photos, photos)
    embed(str(photos), cache, settings(photo_run))
    random = np.random.default_rng(1)
    for color, value in COLORS.items():
        for number in (100, 101):
            (photos / color / f"{number}.jpg").write_bytes(photo(value, random))
    (photos / "green/4.jpg").unlink()
    (photos / "blue/5.jpg").write_bytes(photo(COLORS["blue"], random) + b"\0")
    return PhotoRun(photos, cache, photo_run.weights, photo_run.run)


def test_new_images_get_rows_of_their_own_and_no_row_moves(grown: PhotoRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = EmbeddingCache.open(grown.cache)
    bytes_before = {path.name: path.read_bytes() for path in grown.cache.iterdir() if path.name != "failures.csv"}
    cache = embed(str(grown.photos), grown.cache, settings(grown))
    assert cache is not None
    assert "7 new, 1 removed, 1 changed" in capsys.readouterr().err
    assert all((grown.cache / name).read_bytes() == data for name, data in bytes_before.items() if ".json" not in name)
    assert (grown.cache / "manifest.json").read_bytes() == bytes_before["manifest.json"]
    assert cache.rows == before.rows + 7
    assert cache.keys[: before.rows] == before.keys
    assert set(cache.keys[before.rows :]) == {f"{c}/{n}.jpg" for c in COLORS for n in (100, 101)} | {"blue/5.jpg"}
    gone = {before.keys.index(key): key for key in ("green/4.jpg", "blue/5.jpg")}
    assert cache.gone.keys() == gone.keys()
    assert np.array_equal(cache.ok[: before.rows], before.ok & ~np.isin(np.arange(before.rows), list(gone)))
    assert np.array_equal(cache.embedding(0, before.rows), before.embedding())
    assert [cache.classes[label] for label in cache.labels[-6:]] == [key.split("/")[0] for key in cache.keys[-6:]]
    assert cache.verify() == []
    # Embedded alone, a new photo is the same to the bit: only its views depend on the row.
    alone = embed(str(grown.photos / "red/100.jpg"), grown.cache.parent / "alone", settings(grown, batch_size=1))
    assert alone is not None
    assert np.allclose(cache.embedding()[cache.keys.index("red/100.jpg")], alone.embedding()[0], atol=2e-3)


def test_nothing_new_makes_no_generation_and_the_earlier_one_can_be_opened(grown: PhotoRun) -> None:
    before = EmbeddingCache.open(grown.cache)
    first = embed(str(grown.photos), grown.cache, settings(grown))
    again = embed(str(grown.photos), grown.cache, settings(grown))
    assert first is not None
    assert again is not None
    assert again.manifest == first.manifest
    assert again.manifest.generation == 1
    opened = EmbeddingCache.open_as(grown.cache, before.digest)
    assert opened is not None
    assert (opened.rows, opened.digest) == (before.rows, before.digest)
    assert EmbeddingCache.open_as(grown.cache, "0" * 32) is None


def test_a_photo_that_comes_back_gets_its_row_back(grown: PhotoRun, capsys: pytest.CaptureFixture[str]) -> None:
    photo_bytes = (grown.photos / "red/2.jpg").read_bytes()
    (grown.photos / "red/2.jpg").unlink()
    missing = embed(str(grown.photos), grown.cache, settings(grown))
    assert "the cache grows: 7 new, 2 removed, 1 changed since" in capsys.readouterr().err
    (grown.photos / "red/2.jpg").write_bytes(photo_bytes)
    back = embed(str(grown.photos), grown.cache, settings(grown))
    assert missing is not None
    assert back is not None
    row = back.keys.index("red/2.jpg")
    assert "the cache grows: 1 returned, 1 removed, 1 changed since" in capsys.readouterr().err
    assert rows_since(missing, back).tolist() == [row]
    assert rows_since(back, back).tolist() == []
    assert row in missing.gone
    assert row not in back.gone
    assert (back.rows, back.manifest.generation) == (missing.rows, 2)


def test_a_cache_that_only_lost_images_does_not_grow(grown: PhotoRun, capsys: pytest.CaptureFixture[str]) -> None:
    embed(str(grown.photos), grown.cache, settings(grown))
    (grown.photos / "red/2.jpg").unlink()
    capsys.readouterr()
    embed(str(grown.photos), grown.cache, settings(grown))
    assert "the cache does not grow: 2 removed, 1 changed since it was made" in capsys.readouterr().err


def test_rows_of_photos_that_came_back_are_predicted_as_new(grown: PhotoRun, tmp_path: Path) -> None:
    (grown.photos / "red/2.jpg").rename(tmp_path / "away.jpg")
    missing = embed(str(grown.photos), grown.cache, settings(grown))
    assert missing is not None
    train_heads(missing, short(), tmp_path / "run")
    (tmp_path / "away.jpg").rename(grown.photos / "red/2.jpg")
    (grown.photos / "red/102.jpg").write_bytes(photo(COLORS["red"], np.random.default_rng(2)))
    embed(str(grown.photos), grown.cache, settings(grown))
    assert predict(tmp_path / "run", str(grown.cache), tmp_path / "new.csv", new=True).unreadable == 0
    rows = list(csv.DictReader((tmp_path / "new.csv").read_text().splitlines()))
    assert [row["key"] for row in rows] == ["red/2.jpg", "red/102.jpg"]


def test_an_image_that_left_is_not_predicted(grown: PhotoRun, tmp_path: Path) -> None:
    train_heads(EmbeddingCache.open(grown.cache), short(), tmp_path / "run")
    cache = embed(str(grown.photos), grown.cache, settings(grown))
    assert cache is not None
    counts = predict(tmp_path / "run", str(grown.cache), tmp_path / "all.csv")
    assert (counts.images, counts.unreadable) == (cache.rows - 2, 1)
    keys = [row["key"] for row in csv.DictReader((tmp_path / "all.csv").read_text().splitlines())]
    assert "green/4.jpg" not in keys
    assert keys.count("blue/5.jpg") == 1


def test_an_image_that_left_is_gone_and_not_unreadable(grown: PhotoRun) -> None:
    def told() -> tuple[list[str], list[str], int, str]:
        cache = embed(str(grown.photos), grown.cache, settings(grown))
        assert cache is not None
        assert cache.verify() == []
        assert cache.unusable.keys() == set(np.flatnonzero(~cache.ok))
        with open(grown.cache / "failures.csv", newline="") as file:
            listed = [row["key"] for row in csv.DictReader(file)]
        unread = [cache.keys[row] for row in cache.failures]
        return unread, listed, summarize(grown.cache).unreadable_images, failures(cache)

    broken, file = "blue/7.jpg", grown.cache / "failures.csv"
    assert told() == ([broken], [broken], 1, f", 1 unreadable (see {file}), 2 removed or changed since")
    (grown.photos / broken).unlink()
    assert told() == ([], [], 0, ", 3 removed or changed since")


def test_an_unfinished_cache_goes_on_with_a_folder_that_has_grown(grown: PhotoRun) -> None:
    cache = grown.cache.parent / "small"
    sizes = {"shard_rows": 10}
    shutil.rmtree(grown.cache)
    whole = embed(str(grown.photos), cache, settings(grown, **sizes))
    assert whole is not None
    lost = whole.manifest.shards[1]
    data = (cache / f"{lost.name}.h5").read_bytes()
    (cache / f"{lost.name}.json").unlink()
    (cache / f"{lost.name}.h5").unlink()
    (grown.photos / "green/200.jpg").write_bytes(photo(COLORS["green"], np.random.default_rng(5)))
    done = embed(str(grown.photos), cache, settings(grown, **sizes))
    assert done is not None
    assert done.rows == whole.rows + 1
    assert (cache / f"{lost.name}.h5").read_bytes() == data
    assert done.verify() == []


def test_other_settings_and_another_folder_are_refused_and_nothing_is_lost(grown: PhotoRun, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"other settings \(pooling"):
        embed(str(grown.photos), grown.cache, settings(grown, pooling="mean"))
    other = tmp_path / "other"
    (other / "red").mkdir(parents=True)
    for number in range(3):
        (other / f"red/new{number}.jpg").write_bytes(photo(COLORS["red"], np.random.default_rng(number)))
    with pytest.raises(UserError, match=r"0 of the 45 images of .* are among these, so they are another set"):
        embed(str(other), grown.cache, settings(grown))
    assert Manifest.read(grown.cache).generation == 0


def test_a_cache_that_kept_no_list_grows_if_nothing_was_removed(grown: PhotoRun) -> None:
    """Caches of earlier versions have no listing: the names in their shards and the sizes now must give the digest."""
    (grown.cache / "listing-00000.parquet").unlink()
    with pytest.raises(CacheError, match=r"other settings \(images"):
        embed(str(grown.photos), grown.cache, settings(grown))
    shutil.rmtree(grown.photos)
    shutil.copytree(open_images(EmbeddingCache.open(photo_cache(grown)), None, 10**8).path(0).parents[1], grown.photos)
    (grown.photos / "red/300.jpg").write_bytes(photo(COLORS["red"], np.random.default_rng(3)))
    cache = embed(str(grown.photos), grown.cache, settings(grown))
    assert cache is not None
    assert cache.rows == 46


def photo_cache(grown: PhotoRun) -> Path:
    """The cache that the session's run was trained on."""
    return Path(json.loads((grown.run / "environment.json").read_text())["cache"]["folder"])


def test_a_run_is_asked_for_new_rows_and_continued(grown: PhotoRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cache = EmbeddingCache.open(grown.cache)
    train_heads(cache, short("train.min_steps=200"), run)
    (tmp_path / "names.csv").write_text("cluster,name\n0,first\n1,second\n2,third\n")
    set_names(run, tmp_path / "names.csv", 3)
    embed(str(grown.photos), grown.cache, settings(grown))

    assert predict(run, str(grown.cache), tmp_path / "new.csv", new=True).images == 7
    rows = list(csv.DictReader((tmp_path / "new.csv").read_text().splitlines()))
    assert [row["key"] for row in rows] == EmbeddingCache.open(grown.cache).keys[-7:]
    with pytest.raises(UserError, match=f"go on with --from {run}"):
        train_heads(EmbeddingCache.open(grown.cache), short("train.min_steps=200"), run)
    scored = evaluate_run(run, EmbeddingCache.open(grown.cache), baselines=())
    assert [(part.name, part.images) for part in scored.parts] == [
        ("training rows", 44),
        ("held out: cache, new rows", 7),
    ]

    continued = temi("train-heads", grown.cache, "--from", run, "--out", tmp_path / "next")
    assert continued.returncode == 0, continued.stderr
    record = json.loads((tmp_path / "next/continued.json").read_text())
    assert (record["known"], record["new"]) == (43, 6)  # of 45 one is removed and one cannot be read
    assert f"in {record['drift']:.0%} of comparisons one lies farther" in continued.stdout
    assert f"{record['moved']} of 43 images that {run} knew moved" in continued.stdout
    before, now = (cluster_of(folder) for folder in (run, tmp_path / "next"))
    assert sum(before[key] == cluster for key, cluster in now.items() if key in before) == 43 - record["moved"]
    assert set(record["kept"]) | set(record["given_up"]) == set(map(int, before.values()))
    named = FinishedRun(tmp_path / "next").outline.names
    assert named == {number: ("first", "second", "third")[number] for number in record["kept"]}


@pytest.mark.long
def test_a_continued_run_says_what_of_the_corrections_it_leaves_behind(photo_run: PhotoRun, tmp_path: Path) -> None:
    before = FinishedRun(shutil.copytree(photo_run.run, tmp_path / "before"))
    keys = before.trained["key"].tolist()
    correct(before, [Remove(keys=keys[:1]), Move(keys=keys[1:2], to=2), Rename(names={0: "first"})])
    assert corrections_left_behind(before.folder) == 2
    continued = temi("train-heads", photo_run.cache, "--from", before.folder, "--out", tmp_path / "next")
    assert continued.returncode == 0, continued.stderr
    assert f"2 merges, splits, moves and removals are not kept by --from alone; add --corrections {before.folder}" in (
        " ".join(continued.stdout.split())
    )
    record = json.loads((tmp_path / "next/continued.json").read_text())
    assert (record["known"], record["new"]) == (len(keys), 0)  # what was removed is not new


def test_marks_and_notes_are_left_behind_too_and_said(
    photo_run: PhotoRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = FinishedRun(shutil.copytree(photo_run.run, tmp_path / "my before"))
    keys = before.trained["key"].tolist()
    correct(before, [Same(keys=keys[:2]), Note(text="look", keys=keys[:1])])
    _open_before(before.folder, None)
    said = f"2 marks and notes are not kept by --from alone; add --corrections '{before.folder}' to train with them\n"
    assert capsys.readouterr().out.endswith(f", {said}")
    correct(before, [Merge(clusters=[0, 2]), Rename(names={0: "first"})])
    _open_before(before.folder, None)
    assert "2 marks and notes and 1 merge, split, move or removal are not kept" in capsys.readouterr().out
    _open_before(before.folder, before.folder)
    assert capsys.readouterr().out == ""


def cluster_of(run: Path) -> dict[str, str]:
    with open(run / "assignments.csv", newline="") as file:
        return {row["key"]: row["cluster"] for row in csv.DictReader(file)}


def test_numbers_stay_where_most_of_a_cluster_stays() -> None:
    before = np.repeat([0, 1, 2, 3], 10)
    now = np.concatenate([np.full(10, 2), np.full(9, 0), [2], np.full(4, 1), np.full(6, 3), np.arange(10) % 4])
    # 2 is what 0 was, 0 is what 1 was, 3 is most of 2; 1 holds 4 of 2's and 2 or 3 of 3's: no more than half of either.
    assert match_numbers(now, before, 4, 4).tolist() == [1, 4, 0, 2]
    assert match_numbers(np.zeros(0, np.int64), np.zeros(0, np.int64), 2, 5).tolist() == [5, 6]


def test_of_two_rows_of_one_name_the_newer_is_the_image() -> None:
    before = Listing(["a", "b", "a"], [1, 2, 3])
    place, changed = find_rows(before, Listing(["b", "a", "c"], [2, 3, 4]))
    assert (place.tolist(), changed) == ([GONE, 0, 1], (0,))
    place, changed = find_rows(before, Listing(["a"], [1]))  # as it was at first
    assert (place.tolist(), changed) == ([0, GONE, GONE], (2,))


def test_a_listing_is_what_was_embedded_or_none(grown: PhotoRun) -> None:
    manifest = Manifest.read(grown.cache)
    kept = read_listing(grown.cache, manifest)
    assert kept is not None
    assert kept.digest == manifest.fingerprint.images
    path = grown.cache / "listing-00000.parquet"
    now = Listing.of(open_source(str(grown.photos), max_pixels=10**8))
    assert now is not None
    path.write_bytes(now.to_parquet())
    assert read_listing(grown.cache, manifest) is None
    path.write_bytes(b"PAR1")
    assert read_listing(grown.cache, manifest) is None


@pytest.mark.long
def test_numbers_that_were_merged_away_are_no_empty_clusters_of_a_continued_run(
    photo_run: PhotoRun, tmp_path: Path
) -> None:
    before = FinishedRun(shutil.copytree(photo_run.run, tmp_path / "before"))
    large = int(before.trained["cluster"].value_counts().idxmax())
    first, second = (number for number in range(3) if number != large)
    correct(before, [Merge(clusters=[first, second]), Split(cluster=large)])
    continued = temi("train-heads", photo_run.cache, "--from", before.folder, "--out", tmp_path / "next")
    assert continued.returncode == 0, continued.stderr
    assert f"numbers without a cluster, merged or given up before: {second}" in continued.stdout
    run = FinishedRun(tmp_path / "next")
    training = json.loads((run.folder / "training.json").read_text())
    assert f"{training['used_clusters']} of 3 clusters used" in continued.stdout
    assert (training["smallest_cluster"] > 0) == (training["used_clusters"] == 3)
    assert second in run.gone
    listed = [row["cluster"] for row in csv.DictReader(temi("names", run.folder).stdout.splitlines())]
    assert len(listed) == 3
    assert str(second) not in listed
    said = temi("export", run.folder, "--out", tmp_path / "images.csv").stdout
    assert " in 3 clusters" in said
    assert overview(run).clusters == 3
