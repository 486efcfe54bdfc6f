"""Exact search: equal to brute force in float64, whatever the ties, and never surer than the rounding allows."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from temi.pipeline.features import exact_search as exact


def rows_of(kind: str, n: int, dim: int, seed: int) -> torch.Tensor:
    """Unit rows of one kind that is hard for a search."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator)
    match kind:
        case "duplicates":
            x = x[torch.randint(max(1, n // 6), (n,), generator=generator)]
        case "zeros":
            x[torch.rand(n, generator=generator) < 0.4] = 0
        case "ties":  # few different products
            x = x.sign()
        case "alike":  # differences below the precision of bfloat16
            x = x[:1] + 0.03 * x
        case "one axis":  # products 1, 0 and -1 alone
            x = torch.nn.functional.one_hot(x.argmax(1), dim) * x.sum(1).sign()[:, None]
    return torch.nn.functional.normalize(x.float(), dim=1)


KINDS = ["normal", "duplicates", "zeros", "ties", "alike", "one axis"]


def products(unit: torch.Tensor) -> np.ndarray:
    x = unit.double().numpy()
    scores = x @ x.T
    np.fill_diagonal(scores, -np.inf)
    return scores


def check(unit: torch.Tensor, k: int) -> None:
    seen: list[int] = []
    index, score = (found.numpy() for found in exact.nearest_rows(unit, k, seen.append))
    truth = products(unit)
    np.testing.assert_allclose(np.take_along_axis(truth, index, 1), score, atol=2e-6)  # also: never itself
    np.testing.assert_allclose(score, -np.sort(-truth, axis=1)[:, :k], atol=2e-6)
    assert all(len(set(own)) == k for own in index.tolist())
    assert sum(seen) == len(unit)


@given(st.sampled_from(KINDS), st.integers(2, 120), st.integers(1, 24), st.integers(0, 99), st.data())
@settings(deadline=None, max_examples=60)
def test_comparing_all_in_float32_equals_brute_force(kind: str, n: int, dim: int, seed: int, data: Any) -> None:
    check(rows_of(kind, n, dim, seed), data.draw(st.integers(1, n - 1)))


@given(st.sampled_from(KINDS), st.integers(40, 200), st.integers(1, 24), st.integers(0, 99), st.data())
@settings(deadline=None, max_examples=100)
def test_screening_in_bfloat16_equals_brute_force(kind: str, n: int, dim: int, seed: int, data: Any) -> None:
    k = data.draw(st.integers(1, (n - 1 - exact.SPARE) // 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "screening_pays", lambda *_: True)
        patch.setitem(exact.BLOCK_BYTES, "cpu", data.draw(st.sampled_from([1, 5000, 2**26])))
        patch.setattr(exact, "GATHERED_BYTES", data.draw(st.sampled_from([1, 2**22])))
        check(rows_of(kind, n, dim, seed), k)


def test_what_screening_alone_would_lose_is_found_by_comparing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "screening_pays", lambda *_: True)
    unit = rows_of("alike", 400, 16, 0)
    check(unit, 5)
    monkeypatch.setattr(exact._Screen, "sure", lambda self, rows, *_: torch.ones(len(rows), dtype=torch.bool))
    with pytest.raises(AssertionError):
        check(unit, 5)


def test_rows_that_differ_are_sure_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "screening_pays", lambda *_: True)
    monkeypatch.setattr(exact, "_compare", lambda *_: pytest.fail("compared again"))
    check(rows_of("normal", 400, 16, 0), 5)


@given(st.sampled_from(KINDS), st.integers(1, 300), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_rounded_product_is_never_trusted_beyond_its_error(kind: str, dim: int, seed: int) -> None:
    unit = rows_of(kind, 30, dim, seed)
    screen, truth = exact._Screen.of(unit), torch.from_numpy(products(unit)).float()
    rounded = exact._products(screen.rounded, torch.arange(30)).float()
    for other in range(30):
        pair = torch.arange(30) != other
        rows = torch.arange(30)[pair]
        # Were `other` the best row that is no candidate, a last neighbor a little worse than it would be wrong.
        worse = truth[rows, other] - 1e-6
        assert not screen.sure(rows, rounded[rows, other], worse).any()
        assert screen.sure(rows, rounded[rows, other], worse + 0.05).all()  # and the bound is of use


@given(st.integers(1, 90), st.integers(1, 5), st.integers(0, 99), st.data())
@settings(deadline=None)
def test_the_largest_of_a_row_are_found_by_groups(n: int, distinct: int, seed: int, data: Any) -> None:
    count = data.draw(st.integers(1, n))
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, 3**distinct, (4, n)).astype(np.float32))
    value, column = exact._largest(scores, count)
    assert torch.equal(value, scores.topk(count).values)
    assert torch.equal(scores.gather(1, column), value)
    assert all(len(set(own)) == count for own in column.tolist())


def test_screening_is_for_many_rows_on_a_processor_that_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = torch.zeros(32 * exact.candidates(2) + 1, 1), torch.zeros(32 * exact.candidates(2), 1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert exact.screening_pays(many, 2)
    assert not exact.screening_pays(few, 2)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
    assert not exact.screening_pays(many, 2)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # an older torch
    assert not exact.screening_pays(many, 2)
