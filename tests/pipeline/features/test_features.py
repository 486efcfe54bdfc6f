"""Features: the same from a cache and from an array; what is computed is kept, and trusted only where it is whole."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture, write_cache

from temi.cache.kept import kept_path, list_kept
from temi.pipeline.features import features as module
from temi.pipeline.features.features import Features


def never(*_: object) -> None:
    pytest.fail("computed again")


def test_a_cache_and_an_array_give_the_same_numbers(tmp_path: Path) -> None:
    embedding, _ = mixture(rows=700)
    views = np.stack([embedding, embedding + 1], axis=1)
    rows = np.arange(3, 700, 2)
    cached = Features.of_cache(write_cache(tmp_path, embedding, views=views), rows)
    array = Features.of_array(embedding[rows], views[rows])
    assert len(cached) == len(array) == len(rows)
    assert cached.view_count == array.view_count == 2
    torch.testing.assert_close(torch.cat(list(cached.blocks())), torch.cat(list(array.blocks())), rtol=0, atol=0)
    # Inner products: directions of equal variance may be turned among themselves.
    one, other = (features.scaled("whiten50") for features in (cached, array))
    torch.testing.assert_close(one @ one.T, other @ other.T, atol=1e-4, rtol=0)
    assert (cached.neighbors(5, "l2")[0] == array.neighbors(5, "l2")[0]).all()
    positions = np.array([0, 5, 100])
    sampled = torch.cat(list(cached.sample(positions).blocks()))
    torch.testing.assert_close(sampled, torch.from_numpy(embedding[rows[positions]]), rtol=0, atol=0)


def test_a_graph_is_kept_for_its_rows_k_and_scaling_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path, mixture()[0])
    rows = np.arange(cache.rows)
    first, similarity = Features.of_cache(cache, rows).neighbors(5, "l2")
    monkeypatch.setattr(module, "find_neighbors", never)
    again, similar = Features.of_cache(cache, rows).neighbors(5, "l2")
    assert (again == first).all()
    assert (similar == similarity).all()
    for other, k, kind in ((rows, 5, "whiten50"), (rows, 6, "l2"), (rows[:-1], 5, "l2")):
        with pytest.raises(pytest.fail.Exception):
            Features.of_cache(cache, other).neighbors(k, kind)


def test_an_array_remembers_and_leaves_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    features = Features.of_array(mixture()[0])
    graph = features.neighbors(5, "l2")
    made = features.memo("sums", {"of": "rows"}, lambda: {"sum": np.arange(3)})
    monkeypatch.setattr(module, "find_neighbors", never)
    assert features.neighbors(5, "l2")[0] is graph[0]
    assert features.memo("sums", {"of": "rows"}, never)["sum"] is made["sum"]  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_is_kept_is_kept_under_its_recipe(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, mixture()[0])
    features = Features.of_cache(cache, np.arange(cache.rows))
    features.memo("cuts", {"seed": 0, "c": 6}, lambda: {"cut": np.arange(10)})
    later = Features.of_cache(cache, np.arange(cache.rows))
    assert later.memo("cuts", {"seed": 0, "c": 6}, never)["cut"].tolist() == list(range(10))  # type: ignore[arg-type]
    for recipe in ({"seed": 1, "c": 6}, {"seed": 0, "c": 7}, {"seed": 0}):
        with pytest.raises(pytest.fail.Exception):
            later.memo("cuts", recipe, never)  # type: ignore[arg-type]
    (kept,) = list_kept(cache.folder / "neighbors")
    assert (kept.name, kept.recipe["c"]) == ("cuts", 6)
    assert kept.nbytes == kept.path.stat().st_size


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_damaged_and_foreign_leftovers_are_made_again(tmp_path: Path, damage: str) -> None:
    cache = write_cache(tmp_path, mixture()[0])
    features = Features.of_cache(cache, np.arange(cache.rows))
    features.memo("cuts", {"seed": 0}, lambda: {"cut": np.arange(100)})
    (path,) = (kept.path for kept in list_kept(cache.folder / "neighbors"))
    whole = path.read_bytes()
    if damage == "foreign":
        features.memo("cuts", {"seed": 1}, lambda: {"cut": np.zeros(100)})
        recipe = {"seed": 1, "embeddings": features.memory.digest}
        whole = kept_path(cache.folder / "neighbors", "cuts", recipe).read_bytes()
    changed = {
        "truncated": whole[:-50],
        "flipped": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        "foreign": whole,
        "empty": b"",
    }
    path.write_bytes(changed[damage])
    again = features.memo("cuts", {"seed": 0}, lambda: {"cut": np.arange(100) + 1})
    assert again["cut"].tolist() == list(range(1, 101))


def test_where_no_folder_can_be_written_to_results_stay_in_memory(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    (cache.folder / "neighbors").write_text("a file in the way")
    features = Features.of_cache(cache, np.arange(cache.rows))
    graph = features.neighbors(5, "l2")
    features.memo("cuts", {"seed": 0}, lambda: {"cut": np.arange(10)})
    assert features.neighbors(5, "l2")[0] is graph[0]
    assert len(features.memo("cuts", {"seed": 0}, never)["cut"]) == 10  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_beside_a_read_only_cache_results_are_kept_elsewhere(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    cache.folder.chmod(0o500)
    features = Features.of_cache(cache, np.arange(cache.rows), tmp_path / "run")
    features.neighbors(5, "l2")
    features.memo("cuts", {"seed": 0}, lambda: {"cut": np.arange(10)})
    assert list((tmp_path / "run").glob("*.h5"))
    assert list(list_kept(tmp_path / "run"))
