import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import FINGERPRINT, make_manifest

from temi.cache import CacheError, Fingerprint, Manifest, Shard, plan_shards
from temi.cache.files import write_sealed

text = st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    rows = draw(st.integers(0, 10_000))
    bounds = st.tuples(st.integers(0, rows), st.integers(0, rows)).map(lambda pair: (min(pair), max(pair)))
    return Manifest(
        fingerprint=Fingerprint(**{**FINGERPRINT, "backbone": draw(text), "views": draw(st.integers(0, 9))}),
        rows=rows,
        dim=draw(st.integers(1, 4096)),
        shards=plan_shards(rows, draw(st.integers(100, 5000))),
        splits=draw(st.dictionaries(text, bounds, max_size=3)),
        classes=tuple(draw(st.lists(text, max_size=4))),
    )


@given(manifest=manifests())
def test_manifest_is_read_back_as_it_was_written(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    manifest.write(folder)
    assert Manifest.read(folder) == manifest
    assert manifest.differences(Manifest.read(folder)) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pooling", {"fingerprint": Fingerprint(**{**FINGERPRINT, "pooling": "mean"})}),
        ("rows", {"rows": 21, "shards": plan_shards(21, 7)}),
        ("dim", {"dim": 7}),
        ("rows per shard", {"shards": plan_shards(20, 8)}),
        ("splits", {"splits": {}}),
        ("classes", {"classes": ("cat", "dog")}),
    ],
)
def test_a_changed_field_is_named(name: str, change: dict[str, Any]) -> None:
    manifest = make_manifest()
    (difference,) = manifest.differences(replace(manifest, **change))
    assert re.match(rf"{name}: here .*, asked ", difference)


@pytest.mark.parametrize(
    "shards",
    [
        (),
        (Shard(0, 0, 19),),
        (Shard(0, 0, 21),),
        (Shard(0, 1, 20),),
        (Shard(0, 0, 10), Shard(1, 11, 20)),
        (Shard(0, 0, 10), Shard(1, 9, 20)),
        (Shard(0, 0, 10), Shard(2, 10, 20)),
        (Shard(0, 0, 10), Shard(1, 10, 10), Shard(2, 10, 20)),
    ],
)
def test_shards_must_cover_the_rows_once_and_in_order(shards: tuple[Shard, ...]) -> None:
    with pytest.raises(CacheError, match="cover"):
        replace(make_manifest(), shards=shards)


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    """Change the manifest as somebody would who knows how its checksum is made."""
    table = json.loads((folder / "manifest.json").read_text())
    del table["checksum"]
    write_sealed(folder / "manifest.json", {**table, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"rows": "20"},
        {"rows": True},
        {"rows": 20.0},
        {"rows": -1},
        {"rows": 2**63},
        {"dim": 0},
        {"dim": 2**40},
        {"dim": None},
        {"shards": "shard-00000"},
        {"shards": [{"index": 0, "start": 0, "stop": 20, "path": "../../etc/passwd"}]},
        {"shards": [{"index": "../../etc/passwd", "start": 0, "stop": 20}]},
        {"shards": [{"index": -1, "start": 0, "stop": 20}]},
        {"shards": [[0, 20]]},
        {"splits": {"train": [0, 21]}},
        {"splits": {"train": [5, 4]}},
        {"splits": {"train": [0]}},
        {"splits": []},
        {"classes": "cat"},
        {"classes": [1]},
        {"fingerprint": {}},
        {"fingerprint": {**FINGERPRINT, "dtype": "float64"}},
        {"fingerprint": {**FINGERPRINT, "dtype": "float16", "views": -1}},
        {"fingerprint": {**FINGERPRINT, "dtype": "float16", "views": 2**30}},
        {"fingerprint": {**FINGERPRINT, "dtype": "float16", "more": 1}},
        {"unknown": 1},
    ],
    ids=str,
)
def test_wrong_types_and_values_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    make_manifest().write(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(CacheError, match=r"manifest\.json is not valid: .*embed again"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, [1]])
def test_another_schema_version_is_refused(tmp_path: Path, version: Any) -> None:
    make_manifest().write(tmp_path)
    rewrite(tmp_path, {"schema": version})
    with pytest.raises(CacheError, match="schema version"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"checksum": 1}', b'{"rows": 1' + b"0" * 5000 + b"}"],
)
def test_what_is_not_a_sealed_table_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(CacheError, match="damaged or was edited"):
        Manifest.read(tmp_path)


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    make_manifest().write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("dog", "dug"))
    with pytest.raises(CacheError, match="damaged or was edited"):
        Manifest.read(tmp_path)


def test_a_folder_without_manifest_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not an embedding cache"):
        Manifest.read(tmp_path)


def test_a_class_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not valid Unicode"):
        replace(make_manifest(), classes=("\udcff",)).write(tmp_path)
