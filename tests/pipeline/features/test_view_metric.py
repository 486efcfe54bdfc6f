"""The metric that views teach against its definition, in blocks of any size, and what it is for."""

from typing import get_args

import numpy as np
import pytest
import torch

from temi.cache.convert.export import _first_of_equals
from temi.pipeline.errors import UserError
from temi.pipeline.features.copies import SAME, cosine_distances, exact_copies, near_copies
from temi.pipeline.features.features import Features
from temi.pipeline.features.kinds import Kind
from temi.pipeline.features.neighbors import find_neighbors
from temi.pipeline.features.scaling import Moments, Scaling, scaled_width, signed_root
from temi.pipeline.features.unit_rows import UnitRows
from temi.pipeline.features.view_metric import RIDGE, view_directions


def test_directions_are_canonical_and_weighed_by_reliability() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3, 6))
    apart = (rows - rows.mean(1, keepdims=True)).reshape(-1, 6)
    within = apart.T @ apart / 100
    between = np.cov(rows.mean(1).T, bias=True) - within / 3
    p = view_directions(iter(torch.from_numpy(rows).split(17))).numpy()
    ridged = within + RIDGE * np.trace(within) / 6 * np.eye(6)
    value = np.sort(np.linalg.eigvals(np.linalg.solve(ridged, between)).real)[::-1]
    value = value[value > 1e-3]
    np.testing.assert_allclose(p.T @ ridged @ p, np.diag((value / (1 + value)) ** 2), atol=1e-4)


def test_what_differs_between_views_of_an_image_counts_little() -> None:
    random = np.random.default_rng(0)
    label = np.arange(400) % 4
    shape = random.normal(size=(4, 8))[label] + 0.7 * random.normal(size=(400, 8))
    light = 6 * random.normal(size=(400, 3, 4))  # changes from view to view
    rows = np.concatenate([np.repeat(shape[:, None], 3, 1), light], 2).astype(np.float32)
    features = Features.of_array(rows[:, 0], rows[:, 1:])

    def purity(kind: str) -> float:
        index, _ = features.neighbors(10, kind)  # type: ignore[arg-type]
        return float((label[index] == label[:, None]).mean())

    assert purity("views") > purity("whiten50") + 0.1
    assert features.scaling("joined").segments == (12, 12, features.scaling("views").width)


@pytest.mark.parametrize(
    ("kind", "viewed"),
    [(kind, viewed) for kind in get_args(Kind) for viewed in (True, False) if viewed or kind != "views"],
)
@pytest.mark.parametrize("dim", [8, 300])
def test_no_scaled_row_is_wider_than_is_counted_for_memory(kind: Kind, viewed: bool, dim: int) -> None:
    rows = np.random.default_rng(0).normal(size=(400, 3, dim)).astype(np.float32)
    width = Scaling.fit(
        kind, Moments(torch.from_numpy(rows[:, 0]), torch.from_numpy(rows[:, 1:]) if viewed else None)
    ).width
    assert width <= scaled_width(kind, dim, viewed) <= width + (dim if viewed and kind in ("views", "joined") else 0)


def test_a_joined_row_has_the_mean_of_the_cosines() -> None:
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.normal(size=(60, 3, 6)).astype(np.float32))
    joined = Scaling.fit("joined", Moments(rows[:, 0], rows[:, 1:]))(rows[:, 0])
    parts = torch.split(joined, list(Scaling.fit("joined", Moments(rows[:, 0], rows[:, 1:])).segments), dim=1)
    units = [torch.nn.functional.normalize(part, dim=1) for part in parts]
    torch.testing.assert_close(joined @ joined.T, torch.stack([unit @ unit.T for unit in units]).mean(0))
    torch.testing.assert_close(joined.norm(dim=1), torch.ones(60))


def test_without_views_there_is_no_such_metric() -> None:
    with pytest.raises(UserError, match=r"needs augmented views; embed with --set embed.views=2"):
        Features.of_array(np.eye(4, dtype=np.float32)).scaling("views")


def test_equal_rows_survive_every_scaling() -> None:
    rows, views = np.ones((30, 8), np.float32), np.ones((30, 2, 8), np.float32)
    for kind in ("none", "l2", "standardize", "center", "root", "whiten25", "whiten50", "views", "joined"):
        assert Features.of_array(rows, views).scaled(kind).isfinite().all(), kind  # type: ignore[arg-type]


def test_signed_root() -> None:
    x = np.array([-4.0, 0.0, 9.0])
    assert signed_root(torch.from_numpy(x)).tolist() == [-2, 0, 3]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_copies_are_found_and_in_order(dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=(10, 4)).astype(dtype)[[3, 0, 3, 1, 0]]
    x[0, 0] = 0.0
    x[2] = x[0]
    x[2, 0] = -0.0
    first, group = exact_copies(torch.from_numpy(x))
    assert first.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(x[first][group], x)
    np.testing.assert_array_equal(_first_of_equals(x), first)  # by which an export finds the rows of a graph


def test_near_copies_and_chains_of_them_are_one() -> None:
    u = np.random.default_rng(0).normal(size=(12, 6))
    rows = np.concatenate([u, u[:3] + 1e-3, u[:3] + 2e-3])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near = rows @ rows.T
    np.fill_diagonal(near, -2)
    index = np.argsort(-near, 1)[:, :4]
    first, group = near_copies(index, 1 - np.take_along_axis(near, index, 1))
    assert first.tolist() == list(range(12))
    np.testing.assert_array_equal(group[12:], [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("spread", [1.0, 0.1, 1e-2, 1e-3])
def test_distances_of_tight_rows_are_told_apart(spread: float) -> None:
    """Where half precision says 0 of all of them: distances, and who is a copy, as float64 has them."""
    random = np.random.default_rng(0)
    rows = np.ones(6) + spread * random.normal(size=(300, 6))
    rows = np.concatenate([rows, rows[:20] + 1e-3 * spread]).astype(np.float32)
    index, similarity, _ = find_neighbors(UnitRows(torch.from_numpy(rows)), 8)
    u = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    expected = ((u[:, None] - u[index]) ** 2).sum(-1) / 2
    found = cosine_distances(UnitRows(torch.from_numpy(rows)), index, similarity)
    if spread == 1:
        np.testing.assert_array_equal(found, 1 - similarity.astype(np.float32))  # half precision can tell these
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4 * SAME * np.median(expected[:, -1]))
    first, group = near_copies(index, found)
    assert first.tolist() == list(range(300))
    np.testing.assert_array_equal(group[300:], np.arange(20))
