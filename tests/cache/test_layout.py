import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from temi.cache import Shard, plan_shards
from temi.cache.schema import all_finite


@given(rows=st.integers(0, 5000), shard_rows=st.integers(1, 700))
def test_every_row_is_in_exactly_one_shard_in_order(rows: int, shard_rows: int) -> None:
    shards = plan_shards(rows, shard_rows)
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(rows))
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(shard.rows == shard_rows for shard in shards[:-1])
    assert all(1 <= shard.rows <= shard_rows for shard in shards)


def test_shard_names_come_from_the_index() -> None:
    assert Shard(7, 0, 1).name == "shard-00007"
    assert Shard(123456, 0, 1).name == "shard-123456"


@pytest.mark.parametrize(("rows", "shard_rows"), [(-1, 4), (4, 0)])
def test_plan_refuses_impossible_sizes(rows: int, shard_rows: int) -> None:
    with pytest.raises(ValueError, match="cannot plan"):
        plan_shards(rows, shard_rows)


@given(bits=arrays(np.uint16, st.integers(0, 300)))
def test_all_finite_agrees_with_numpy_on_every_bit_pattern(bits: np.ndarray) -> None:
    values = bits.view(np.float16)
    assert all_finite(values) == bool(np.isfinite(values).all())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 2**18 - 1, 2**18, 600_000 - 1])
def test_all_finite_looks_at_every_block(bad: float, place: int) -> None:
    values = np.full(600_000, -65504, np.float16)
    assert all_finite(values)
    values[place] = bad
    assert not all_finite(values)
