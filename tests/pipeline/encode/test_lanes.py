"""Several batches at once: in order, as without lanes, and an error in one ends all."""

import threading
import time

import pytest
import torch

from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbone import Backbone
from temi.pipeline.encode.forward import Clock, cut, embed_rows
from temi.pipeline.encode.preprocessing import Preprocessing
from temi.pipeline.images import open_source


def backbone(encode, lanes: int) -> Backbone:
    preprocessing = Preprocessing(8, (8, 8), "bilinear", 1 / 255, (0.0,) * 3, (1.0,) * 3)
    return Backbone("fake", "1", "mean", "fp32", 192, preprocessing, torch.device("cpu"), encode, lanes=lanes)


@pytest.fixture(scope="module")
def digits():
    return open_source("digits", max_pixels=EmbedConfig().max_pixels)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_order_whichever_is_done_first(digits, workers):
    meanwhile, most = [], []

    def encode(pixels):
        meanwhile.append(1)
        most.append(len(meanwhile))
        time.sleep(0.02 * float(pixels[0].mean()) + 0.002 * (threading.get_ident() % 5))
        meanwhile.pop()
        return pixels.flatten(1)

    batches = cut(5, 100, 4)
    expected = list(embed_rows(backbone(lambda pixels: pixels.flatten(1), 1), digits, batches))
    found = list(embed_rows(backbone(encode, 3), digits, batches, workers=workers))
    assert [batch.rows for batch in found] == batches
    assert all(torch.equal(one.embedding, other.embedding) for one, other in zip(found, expected, strict=True))
    assert 1 < max(most) <= 3


def test_an_error_in_a_lane_is_raised_and_the_lanes_end(digits):
    def encode(pixels):
        raise RuntimeError("shapes differ")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(embed_rows(backbone(encode, 2), digits, cut(0, 64, 4)))
    assert threading.active_count() <= before  # threads of other tests may end meanwhile


def test_who_stops_early_gets_his_threads_back(digits):
    threads, before = torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(2)
    try:
        stream = embed_rows(backbone(lambda pixels: pixels.flatten(1), 2), digits, cut(0, 400, 4))
        next(stream)
        assert torch.get_num_threads() == 1
        stream.close()
        assert torch.get_num_threads() == 2
        assert threading.active_count() <= before
    finally:
        torch.set_num_threads(threads)


def test_parts_of_the_lanes_add_up_to_the_time_that_passed(digits):
    def encode(pixels):
        time.sleep(0.02)
        return pixels.flatten(1)

    clock, start = Clock(lanes=2), time.perf_counter()
    list(embed_rows(backbone(encode, 2), digits, cut(0, 160, 8), clock=clock))
    passed = time.perf_counter() - start
    assert clock.seconds["forward"] > 0.19
    assert sum(clock.seconds.values()) < 1.2 * passed
