"""The estimator keeps scikit-learn's contract and gives what the command line gives."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mixtures import mixture
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import temi
from temi import TemiClusterer
from temi.pipeline.clusterer import _without_lock, write_cache
from temi.pipeline.config import load_config
from temi.pipeline.runs.train import assign, train_heads

SHORT = ("start.kind=random", "heads.count=4", "train.min_steps=150", "train.epochs=0", "train.tensorboard=false")
WARM = tuple(setting for setting in SHORT if setting != "start.kind=random")


@pytest.mark.slow
@parametrize_with_checks([TemiClusterer(n_clusters=3, settings=SHORT)])
def test_scikit_learns_contract(estimator: TemiClusterer, check: object) -> None:
    check(estimator)


def test_it_is_the_command_lines_run(tmp_path: Path) -> None:
    embedding, label = mixture(rows=300, clusters=4, noise=0.3)
    rows = embedding.astype(np.float32)
    clusterer = TemiClusterer(4, settings=WARM, random_state=3, run=tmp_path / "kept")
    found = clusterer.fit_predict(rows)
    seeds = [f"{part}.seed=3" for part in ("start", "train", "pairs")]
    cache = write_cache(rows, tmp_path / "other")
    model = train_heads(cache, load_config(None, [*WARM, "heads.clusters=4", *seeds]), tmp_path / "other/run")
    cluster, confidence = assign(model, cache.embedding())
    np.testing.assert_array_equal(found, cluster)
    np.testing.assert_array_equal(clusterer.confidence_, confidence)
    assert (tmp_path / "kept/run/heads.safetensors").read_bytes() == (
        tmp_path / "other/run/heads.safetensors"
    ).read_bytes()
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["cache", "run"]
    np.testing.assert_array_equal(clusterer.predict(rows), found)
    np.testing.assert_allclose(clusterer.predict_proba(rows).sum(1), 1, atol=1e-5)
    assert adjusted_rand_score(label, found) > 0.9
    assert np.bincount(found).tolist() == sorted(np.bincount(found), reverse=True)


def test_mistakes_are_value_errors(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 4))
    with pytest.raises(ValueError, match=r"heads.clusters = 21 is more than the 20 images"):
        TemiClusterer(21, settings=SHORT).fit(rows)
    with pytest.raises(ValueError, match=r"unknown setting heads.colour"):
        TemiClusterer(2, settings=("heads.colour=1",)).fit(rows)
    with pytest.raises(ValueError, match=r"the largest float16"):
        TemiClusterer(2, settings=SHORT, run=tmp_path).fit(rows * 1e6)


def test_it_is_silent_and_touches_no_disk_unless_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    embedding, label = mixture(rows=300, clusters=4, noise=0.3)
    found = TemiClusterer(4, settings=WARM).fit_predict(embedding.astype(np.float32))
    assert adjusted_rand_score(label, found) > 0.9
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    TemiClusterer(4, settings=WARM, verbose=True).fit(embedding.astype(np.float32))
    assert "train: " in capfd.readouterr().err


@pytest.mark.parametrize("factor", [1e6, 1e-8])
def test_every_door_refuses_what_a_cache_cannot_hold(factor: float) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    few = TemiClusterer(2, settings=("heads.count=2", "train.min_steps=5", "train.epochs=0", "neighbors.k=5"))
    with pytest.raises(ValueError, match=r"row \d+ of X"):
        few.fit(factor * rows)
    few.fit(rows)
    with pytest.raises(ValueError, match=r"row \d+ of X"):
        few.predict(factor * rows)


def test_equal_rows_are_said_to_be_equal(tmp_path: Path) -> None:
    rows = np.ones((10, 4), np.float32)
    with pytest.raises(ValueError, match=r"^only 1 of the 10 images of the array differ, and copies count once"):
        TemiClusterer(2, settings=SHORT).fit(rows)
    with pytest.raises(
        ValueError, match=rf"^only 1 of the 10 images of {tmp_path}/cache differ, and copies count once"
    ):
        TemiClusterer(2, settings=SHORT, run=tmp_path).fit(rows)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("heads.clusters=7", "settings has heads.clusters; give n_clusters instead"),
        ("train.seed=7", "settings has train.seed; give random_state instead"),
        ("train.split=train", "settings has train.split=train, but an array has no splits"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(setting: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TemiClusterer(2, settings=(*SHORT, setting)).fit(np.eye(20, dtype=np.float32))


def test_a_file_is_no_run_and_none_is_no_setting(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 4))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot create the folder .*file: a file has that name; choose another"):
        TemiClusterer(2, settings=SHORT, run=tmp_path / "file").fit(rows)
    assert TemiClusterer(2, settings=None)._config(20) == TemiClusterer(2)._config(20)


@pytest.mark.parametrize(
    "setting", ["train.epochs=inf", "train.epochs=1e30", "optimizer.lr=inf", "train.min_steps=1e9"]
)
def test_numbers_that_nothing_can_be_computed_with_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=setting.partition("=")[0]):
        TemiClusterer(2, settings=(*SHORT, setting)).fit(np.eye(20, dtype=np.float32))
    with pytest.raises(ValueError, match=r"seed in --set: .* less than 4294967296"):
        TemiClusterer(2, settings=SHORT, random_state=10**23).fit(np.eye(20, dtype=np.float32))


def test_files_of_ones_own_in_the_folder_of_the_run_stay(tmp_path: Path) -> None:
    rows = mixture(rows=60, clusters=3)[0].astype(np.float32)
    np.save(tmp_path / "embedding.npy", rows)
    (tmp_path / "keys.txt").write_text("mine")
    before = (tmp_path / "embedding.npy").read_bytes()
    TemiClusterer(3, settings=SHORT, run=tmp_path).fit(np.load(tmp_path / "embedding.npy"))
    with pytest.raises(ValueError, match="the largest float16"):
        TemiClusterer(3, settings=SHORT, run=tmp_path).fit(rows * 1e6)
    assert (tmp_path / "embedding.npy").read_bytes() == before
    assert (tmp_path / "keys.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "embedding.npy", "keys.txt", "run"]
    with pytest.raises(ValueError, match=r"run=.*run is the folder of a finished run; give"):
        TemiClusterer(3, settings=SHORT, run=tmp_path / "run").fit(rows)
    assert not (tmp_path / "run/cache").exists()


def test_few_different_rows_are_clustered_however_often_each_is_there(tmp_path: Path) -> None:
    rows = np.repeat(np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32), 10, axis=0)
    for run in (None, tmp_path):
        found = TemiClusterer(3, settings=SHORT, run=run).fit_predict(rows)
        assert [set(found[first : first + 10]) for first in (0, 10, 20)] == [{found[0]}, {found[10]}, {found[20]}]
    with pytest.raises(ValueError, match=r"heads.clusters = 4 is more than the 3 images .* \(30 with their copies\)"):
        TemiClusterer(4, settings=SHORT).fit(rows)


def test_neighbors_that_were_asked_for_are_not_made_fewer_in_silence() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 4))
    with pytest.raises(ValueError, match=r"neighbors.k = 20 needs more than 20 images, but 20 can be trained on"):
        TemiClusterer(2, settings=(*SHORT, "neighbors.k=20")).fit(rows)


def test_any_view_of_an_array_is_taken_without_a_warning() -> None:
    rows = mixture(rows=60, clusters=3)[0].astype(np.float32)
    locked = rows.view()
    locked.flags.writeable = False
    expected = TemiClusterer(3, settings=SHORT).fit(rows)
    for view in (rows[::-1][::-1], rows[:, ::-1][:, ::-1], np.asfortranarray(rows), locked, pd.DataFrame(rows)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            np.testing.assert_array_equal(TemiClusterer(3, settings=SHORT).fit_predict(view), expected.labels_)
            np.testing.assert_array_equal(expected.predict(view), expected.labels_)
    backwards = TemiClusterer(3, settings=SHORT)
    assert adjusted_rand_score(backwards.fit_predict(rows[::-1, ::-1]), expected.labels_[::-1]) > 0.9
    assert not locked.flags.writeable
    assert np.shares_memory(_without_lock(locked), locked)


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ({"settings": -1}, r'settings is a list of texts such as \["heads.count=3"\], got -1'),
        ({"settings": "heads.count=3"}, r"settings is a list of texts .*, got 'heads.count=3'"),
        ({"settings": [3]}, r"settings is a list of texts .*, got \[3\]"),
        ({"settings": {"heads.count": 3}}, r"settings is a list of texts .*, got \{'heads.count': 3\}"),
        ({"run": -1}, "run is a path, got -1"),
        ({"corrections": -1}, "corrections is a path, got -1"),
    ],
)
def test_a_parameter_of_the_wrong_kind_is_named(parameter: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        TemiClusterer(2, **{"settings": SHORT, **parameter}).fit(np.eye(20, dtype=np.float32))


@pytest.mark.parametrize("settings", ["heads.count=3", -1, None])
def test_the_functions_name_settings_of_the_wrong_kind(tmp_path: Path, settings: object) -> None:
    for stage in (temi.embed, temi.train_heads):
        with pytest.raises(ValueError, match=r"^settings is a list of texts"):
            stage(tmp_path, tmp_path / "out", settings=settings)
    assert not list(tmp_path.iterdir())
