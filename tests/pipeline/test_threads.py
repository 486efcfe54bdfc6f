"""Several threads make what one does, in order."""

import threading

import numpy as np
import pytest
import torch

from temi.pipeline.features.features import Features
from temi.pipeline.start.communities import cut_graphs
from temi.pipeline.start.spaces import space_graphs
from temi.pipeline.threads import in_threads


def test_what_is_made_comes_in_order_and_a_fault_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = threading.Barrier(3, timeout=10)  # passed by three at a time alone
    assert list(in_threads(lambda a, b: (together.wait(), a * b)[1], range(6), range(6))) == [0, 1, 4, 9, 16, 25]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda a: 1 // a, [1, 0]))


def test_communities_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    graphs = 3 * space_graphs(Features.of_array(rows), "joined", [15, 10])
    found = []
    for count in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        found.append(np.stack(list(cut_graphs(graphs, 6, 0))))
    assert (found[0] == found[1]).all()
    assert len(np.unique(found[0], axis=0)) > 1
