"""Views: a function of (seed, row, view), with torchvision's arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from temi.pipeline.encode.views import ViewPolicy, jitter

POLICY = ViewPolicy(count=2, seed=7, crop_scale=(0.25, 1.0), flip=0.5, jitter=0.4)


def test_a_view_is_the_same_forever():
    view = POLICY.draw(row=3, view=1)
    assert view == POLICY.draw(row=3, view=1)
    # Written down once: another numpy, torch or machine must draw the same.
    assert (view.area, view.ratio, view.flip) == (0.5324211967452813, 0.052198568418203695, False)
    assert (view.top, view.left) == (0.7889445748573777, 0.8794331055846956)
    assert view.jitter == pytest.approx((0.962762580925985, 0.7712074901790482, 1.03453617717664), abs=1e-12)


def test_seed_row_and_view_each_matter():
    other_seed = ViewPolicy(count=2, seed=8, crop_scale=(0.25, 1.0), flip=0.5, jitter=0.4)
    drawn = [POLICY.draw(3, 1), POLICY.draw(3, 0), POLICY.draw(1, 3), POLICY.draw(4, 1), other_seed.draw(3, 1)]
    assert len({view.area for view in drawn}) == len(drawn)


def test_parameters_are_spread_as_asked():
    views = [POLICY.draw(row, 0) for row in range(2000)]
    assert np.mean([view.flip for view in views]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([view.area for view in views]) == pytest.approx(0.5, abs=0.03)
    factors = np.array([view.jitter for view in views])
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    assert factors.std(axis=0) == pytest.approx(0.8 / np.sqrt(12), rel=0.05)
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.1


def test_as_many_views_are_turned_as_asked_each_way_as_often_and_nothing_else_changes():
    turning = replace(POLICY, turn=0.6)
    turns = np.bincount([turning.draw(row, 0).turns for row in range(2000)], minlength=4)
    np.testing.assert_allclose(turns / 2000, [0.4, 0.2, 0.2, 0.2], atol=0.03)
    assert turning.draw(3, 1)._replace(turns=0) == POLICY.draw(3, 1)
    assert turning.describe() == {**POLICY.describe(), "turn": 0.6}


@given(row=st.integers(0, 2**40), height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_boxes_lie_inside_any_image(row, height, width):
    top, left, box_height, box_width = POLICY.box(POLICY.draw(row, 0), height, width)
    assert box_height >= 1
    assert box_width >= 1
    assert 0 <= top <= height - box_height
    assert 0 <= left <= width - box_width


def test_boxes_have_the_area_and_ratio_drawn():
    view = POLICY.draw(3, 1)
    _, _, height, width = POLICY.box(view, 1000, 1000)
    assert height * width == pytest.approx((0.25 + 0.75 * view.area) * 1e6, rel=0.01)
    assert width / height == pytest.approx((3 / 4) * (16 / 9) ** view.ratio, rel=0.01)


def test_jitter_is_torchvisions():
    pixels = torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([[1.3, 0.7, 1.4], [0.6, 1.2, 0.6], [1.0, 1.0, 1.0], [1.4, 1.4, 0.0]])
    for image, (brightness, contrast, saturation), ours in zip(
        pixels, factors.tolist(), jitter(pixels, factors), strict=True
    ):
        theirs = tv.adjust_contrast(tv.adjust_brightness(image, brightness), contrast)
        torch.testing.assert_close(ours, tv.adjust_saturation(theirs, saturation), atol=1e-5, rtol=0)


def test_no_views_have_no_policy():
    assert ViewPolicy(0, 7, (0.25, 1.0), 0.5, 0.4).describe() == {}
    assert set(POLICY.describe()) == {"crop_ratio", "crop_scale", "flip", "jitter"}
