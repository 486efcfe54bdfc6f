"""Neighbor mining: self excluded by row index, across blocks and among duplicates; stored and reused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import mixture

from temi.pipeline.errors import UserError
from temi.pipeline.features import inverted_file, unit_rows
from temi.pipeline.features import neighbors as mine
from temi.pipeline.features.unit_rows import UnitRows


def rows_of(embedding: np.ndarray) -> UnitRows:
    return UnitRows(torch.from_numpy(embedding))


def brute_force(embedding: np.ndarray, k: int) -> np.ndarray:
    unit = embedding.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    return -np.sort(-cosine, axis=1)[:, :k]


def test_unit_rows_are_of_norm_one_and_nobodys_rows_are_changed() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    rows[3] = 0
    kept = rows.copy()
    unit = unit_rows.unit_rows(rows)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), np.arange(30) != 3, atol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(rows, axis=1, keepdims=True), rows, atol=1e-6)
    found, cosine = mine.nearest(rows, rows[:5], 2)
    np.testing.assert_allclose(cosine[:3, 0], 1, atol=1e-6)
    assert found[:3, 0].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(rows, kept)


@pytest.mark.parametrize("block", [7, 64, 4096])
def test_neighbors_equal_brute_force_in_any_block_size(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(unit_rows, "BLOCK_ROWS", block)
    embedding, _ = mixture(rows=100)
    index, similarity, _ = mine.find_neighbors(rows_of(embedding), 5)
    np.testing.assert_allclose(similarity, brute_force(embedding, 5), atol=1e-3)
    assert (index != np.arange(100)[:, None]).all()
    assert index.min() >= 0


def test_a_row_is_never_its_own_neighbor_and_a_duplicate_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_rows, "BLOCK_ROWS", 16)
    embedding = np.repeat(mixture(rows=10)[0], 5, axis=0)  # groups of 5 equal rows, some across a block border
    index, _, _ = mine.find_neighbors(rows_of(embedding), 4)
    for row in range(50):
        group = set(range(row // 5 * 5, row // 5 * 5 + 5))
        assert set(index[row].tolist()) == group - {row}


def test_more_duplicates_than_neighbors_still_exclude_self() -> None:
    index, similarity = mine.exact_neighbors(np.ones((40, 8), np.float16), 3)
    assert (index != np.arange(40)[:, None]).all()
    np.testing.assert_allclose(similarity, 1, atol=1e-3)


@given(st.integers(2, 30), st.data())
@settings(deadline=None)
def test_drop_self_keeps_the_others_in_order(rows: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    found = np.stack([rng.permutation(rows)[: k + 1] for _ in range(rows)])
    kept, score = mine.drop_self(np.arange(rows), found, found.astype(np.float32))
    for row in range(rows):
        assert kept[row].tolist() == [i for i in found[row].tolist() if i != row][:k]
    assert (kept == score).all()


def test_beyond_the_exact_limit_recall_is_at_least_95_percent_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, _ = mixture(rows=2000, dim=24, clusters=15, noise=1.0)
    exact, _ = mine.exact_neighbors(embedding, 10)
    monkeypatch.setattr(mine, "exact_rows", lambda: 1999)
    found, similarity, attributes = mine.find_neighbors(rows_of(embedding), 10)
    recall = np.mean([len(np.intersect1d(*pair)) for pair in zip(exact, found, strict=True)]) / 10
    assert attributes["backend"] == "faiss-ivf"
    assert 1 < attributes["probes"] < attributes["lists"]
    assert attributes["recall"] >= 0.95
    assert recall == pytest.approx(attributes["recall"], abs=0.02)
    assert (found != np.arange(2000)[:, None]).all()
    assert (np.diff(similarity.astype(np.float32), axis=1) <= 1e-3).all()


def test_cells_with_fewer_rows_than_neighbors_fall_back_on_comparing_with_all() -> None:
    embedding = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    index, _, probing = mine.approximate_neighbors(rows_of(embedding), 30)
    assert probing["recall"] >= 0.95
    assert index.min() >= 0
    for row, own in enumerate(index):
        assert len({row, *own.tolist()}) == 31


def test_rows_are_read_in_blocks_and_what_is_found_does_not_depend_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, _ = mixture(rows=900, dim=24, clusters=15, noise=1.0)
    one = mine.approximate_neighbors(rows_of(embedding), 10)
    monkeypatch.setattr(unit_rows, "BLOCK_ROWS", 7)
    other = mine.approximate_neighbors(rows_of(embedding), 10)
    assert one[2] == other[2]
    assert (one[0] == other[0]).mean() > 0.999  # equal codes tie
    rows, wanted = rows_of(embedding), np.array([0, 6, 7, 899])
    np.testing.assert_allclose(rows.at(wanted), rows.whole()[wanted])
    score, found = inverted_file.nearest_of(rows, rows.at(wanted), 5)
    np.testing.assert_array_equal(found[:, 0], wanted)
    np.testing.assert_allclose(score[:, 1:], brute_force(embedding, 4)[wanted], atol=1e-3)


def test_codes_too_coarse_for_the_recall_end_the_search_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit for eight coordinates finds few neighbors in any number of cells."""
    monkeypatch.setattr(inverted_file, "CODE", "PQ3x4fs")
    embedding = np.random.default_rng(0).standard_normal((3000, 24)).astype(np.float32)
    probing = mine.approximate_neighbors(rows_of(embedding), 10)[2]
    assert probing["recall"] < 0.95
    assert probing["probes"] < probing["lists"]


def test_too_many_neighbors_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"neighbors.k = 30 needs more than 30 images, but 30"):
        mine.check_count(30, 30)


def test_missing_faiss_names_the_extra_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r"needs faiss, .*temi-clustering\[(cpu|gpu)\]"):
        unit_rows.import_faiss()


def test_the_inverted_file_goes_to_a_gpu_where_faiss_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the GPU: the index is moved once, trained and still empty, then filled and searched."""
    faiss = unit_rows.import_faiss()
    moved: list[bool] = []

    def to_gpu(resources: object, device: int, index: object) -> object:
        moved.append(index.is_trained and index.ntotal == 0 and device == 0)  # type: ignore[attr-defined]
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    monkeypatch.setattr(inverted_file, "MOST_PROBES_GPU", 1)
    embedding, _ = mixture(rows=600)
    _, _, probing = mine.approximate_neighbors(rows_of(embedding), 5)
    assert moved == [True]
    assert probing["probes"] == 1
