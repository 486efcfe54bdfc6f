from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import FINGERPRINT

from temi.cache import Fingerprint
from temi.cache.fingerprint import IMPORTED

# One other value for every field: a field added without one fails `test_every_field_has_a_change`.
CHANGES: dict[str, Any] = {
    "backbone": "facebook/dinov2-small",
    "revision": "main",
    "preprocessing": {**FINGERPRINT["preprocessing"], "size": [224, 225]},
    "pooling": "mean",
    "precision": "bf16",
    "view_policy": {**FINGERPRINT["view_policy"], "flip": 0.25},
    "view_seed": 1,
    "views": 3,
    "images": "f" * 32,
    "dtype": "float32",
}


def test_every_field_has_a_change() -> None:
    assert CHANGES.keys() == {field.name for field in fields(Fingerprint)}


def test_another_decoding_is_another_cache_of_the_same_meaning() -> None:
    before, after = (
        Fingerprint(**{**FINGERPRINT, "preprocessing": {"decoding": decoding, "crop": [224, 224]}})
        for decoding in ("rgb8", "rgb8, deep gray by its range")
    )
    assert before.differences(after) == ['preprocessing.decoding: here "rgb8", asked "rgb8, deep gray by its range"']
    assert before.differences_in_meaning(after) == []
    smaller = replace(after, preprocessing={"crop": [98, 98]}, images="f" * 32)
    assert before.differences_in_meaning(smaller) == ["preprocessing.crop: here [224, 224], asked [98, 98]"]


def test_imported_embeddings_mean_the_same_whatever_file_they_came_in() -> None:
    before = Fingerprint(**{**FINGERPRINT, "pooling": IMPORTED})
    after = replace(before, revision="the digest of another file")
    assert before.differences_in_meaning(after) == []
    other = replace(after, backbone="other")
    (difference,) = before.differences_in_meaning(other)
    assert difference.startswith("backbone: here")


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_field_is_named_and_changes_the_digest(name: str) -> None:
    here = Fingerprint(**FINGERPRINT)
    asked = replace(here, **{name: CHANGES[name]})
    (difference,) = here.differences(asked)
    assert difference.startswith(name)
    assert "here" in difference
    assert "asked" in difference
    assert here.digest != asked.digest


def test_nested_settings_are_named_in_full() -> None:
    here = Fingerprint(**FINGERPRINT)
    asked = replace(here, preprocessing={"size": [224, 224], "mean": [0.5], "crop": None})
    assert here.differences(asked) == [
        "preprocessing.crop: here nothing, asked null",
        "preprocessing.mean: here [0.485, 0.456, 0.406], asked [0.5]",
        'preprocessing.resample: here "bicubic", asked nothing',
    ]


def test_tuples_and_order_of_settings_do_not_matter() -> None:
    here = Fingerprint(**FINGERPRINT)
    shuffled = dict(reversed([(k, tuple(v) if isinstance(v, list) else v) for k, v in here.preprocessing.items()]))
    same = replace(here, preprocessing=shuffled)
    assert here == same
    assert here.digest == same.digest
    assert here.differences(same) == []


def test_true_is_not_one() -> None:
    here = Fingerprint(**{**FINGERPRINT, "view_policy": {"flip": 1}})
    assert here.differences(replace(here, view_policy={"flip": True})) == ["view_policy.flip: here 1, asked true"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
settings = st.dictionaries(st.text(), json_values, max_size=4)


@given(one=settings, other=settings)
def test_digests_are_equal_exactly_if_there_are_no_differences(one: Any, other: Any) -> None:
    here = Fingerprint(**{**FINGERPRINT, "preprocessing": one})
    asked = Fingerprint(**{**FINGERPRINT, "preprocessing": other})
    assert (here.digest == asked.digest) == (here.differences(asked) == [])
    assert here.differences(here) == []
