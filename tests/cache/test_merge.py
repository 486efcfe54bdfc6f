from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import make_manifest, shard_content

from temi.cache import CacheError, EmbeddingCache, Manifest, ShardWriter
from temi.cache.convert.merge import merge_caches
from temi.cache.fingerprint import IMPORTED


def write(folder: Path, manifest: Manifest, prefix: str, failures: dict[int, str] | None = None) -> EmbeddingCache:
    """A cache whose keys start with `prefix`."""
    with ShardWriter.open(folder, manifest) as writer:
        for shard in writer.pending():
            content = shard_content(manifest, shard, failures or {})
            content["keys"] = [f"{prefix}/{key}" for key in content["keys"]]
            writer.write(shard, **content)
        cache = writer.finish()
    assert cache is not None
    return cache


def rows_by_key(cache: EmbeddingCache) -> dict[str, Any]:
    """Everything that is known of each image, by its name."""
    names = [*cache.classes, None]
    split = {row: name for name, (start, stop) in cache.splits.items() for row in range(start, stop)}
    embedding, views = cache.embedding(), cache.view_embedding()
    return {
        key: (
            embedding[row].tobytes(),
            views[row].tobytes(),
            names[cache.labels[row]],
            split.get(row),
            cache.failures.get(row),
        )
        for row, key in enumerate(cache.keys)
    }


def test_every_row_of_every_cache_is_in_the_merged_one(tmp_path: Path) -> None:
    first = write(tmp_path / "a", make_manifest(), "a", {4: "broken", 19: "also broken"})
    other = replace(make_manifest(rows=13, images="f" * 32), classes=("dog", "newt", "cat"))
    second = write(tmp_path / "b", other, "b", {0: "broken"})
    third = write(tmp_path / "c", replace(make_manifest(rows=5, images="e" * 32), splits={}), "c")
    merged = merge_caches([tmp_path / "a", tmp_path / "b", tmp_path / "c"], tmp_path / "m", shard_rows=8)
    assert merged.rows == 38
    assert merged.splits == {"train": (0, 16), "test": (16, 33)}
    assert merged.classes == ("cat", "dog", "Äffchen", "newt")
    assert rows_by_key(merged) == rows_by_key(first) | rows_by_key(second) | rows_by_key(third)
    assert merged.keys[:2] == first.keys[:2]
    assert np.count_nonzero(~merged.ok) == 3
    assert merged.verify() == []


def test_a_merged_cache_differs_from_its_parts_and_depends_on_their_order(tmp_path: Path) -> None:
    write(tmp_path / "a", make_manifest(), "a")
    write(tmp_path / "b", make_manifest(images="f" * 32), "b")
    one = merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "ab").manifest.fingerprint
    two = merge_caches([tmp_path / "b", tmp_path / "a"], tmp_path / "ba").manifest.fingerprint
    assert len({one.images, two.images, make_manifest().fingerprint.images, "f" * 32}) == 4


def test_other_settings_are_refused_with_the_field_named(tmp_path: Path) -> None:
    write(tmp_path / "a", make_manifest(), "a")
    write(tmp_path / "b", make_manifest(pooling="mean"), "b")
    write(tmp_path / "c", make_manifest(dim=7), "c")
    with pytest.raises(CacheError, match=r"pooling: here .cls., asked .mean."):
        merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    with pytest.raises(CacheError, match="dim: here 6, asked 7"):
        merge_caches([tmp_path / "a", tmp_path / "c"], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_shared_image_is_refused_and_named(tmp_path: Path) -> None:
    write(tmp_path / "a", make_manifest(), "same")
    write(tmp_path / "b", make_manifest(images="f" * 32), "same")
    with pytest.raises(CacheError, match=r"same/bilder/größe 0\.jpg is in .*different images only"):
        merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    with pytest.raises(CacheError, match="is in"):
        merge_caches([tmp_path / "a", tmp_path / "a"], tmp_path / "m")


def test_overlapping_splits_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", make_manifest(), "a")
    overlapping = replace(make_manifest(images="f" * 32), splits={"train": (0, 12), "small": (3, 5)})
    write(tmp_path / "b", overlapping, "b")
    with pytest.raises(CacheError, match="overlap at row 3"):
        merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "m")


def test_a_cache_is_not_overwritten_by_what_is_made_of_it(tmp_path: Path) -> None:
    first = write(tmp_path / "a", make_manifest(), "a")
    write(tmp_path / "b", make_manifest(images="f" * 32), "b")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for out in (tmp_path / "a", tmp_path / "link", tmp_path / "b"):
        with pytest.raises(CacheError, match="which the new cache is made of; give another --out"):
            merge_caches([tmp_path / "a", tmp_path / "b"], out, overwrite=True)
    assert EmbeddingCache.open(tmp_path / "a").digest == first.digest
    assert first.verify() == []


def test_one_cache_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="two caches or more"):
        merge_caches([tmp_path], tmp_path / "m")


def test_rows_whose_image_is_gone_are_left_out_and_their_names_are_free(tmp_path: Path) -> None:
    write(tmp_path / "a", make_manifest(), "a", {4: "broken", 6: "broken"})
    manifest = Manifest.read(tmp_path / "a")
    manifest.grown(manifest.fingerprint, 0, 8, classes=manifest.classes, removed=(0, 4), changed=(19,)).write(
        tmp_path / "a"
    )
    first = EmbeddingCache.open(tmp_path / "a")
    second = write(tmp_path / "b", make_manifest(rows=13, images="f" * 32), "b")
    merged = merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "m", shard_rows=8)
    left = {key: row for key, row in rows_by_key(first).items() if key not in [first.keys[row] for row in (0, 4, 19)]}
    assert rows_by_key(merged) == left | rows_by_key(second)
    assert list(merged.failures.values()) == ["broken"]
    assert merged.verify() == []


def test_imported_embeddings_are_merged_where_one_backbone_made_them(tmp_path: Path) -> None:
    for name, revision in (("a", "1" * 32), ("b", "2" * 32)):
        plan = make_manifest(images=revision)
        write(
            tmp_path / name,
            replace(plan, fingerprint=replace(plan.fingerprint, pooling=IMPORTED, revision=revision)),
            name,
        )
    merged = merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    assert merged.manifest.fingerprint.revision not in ("1" * 32, "2" * 32)
    assert merged.rows == 2 * make_manifest().rows
    plan = make_manifest(images="3" * 32)
    write(tmp_path / "c", replace(plan, fingerprint=replace(plan.fingerprint, pooling=IMPORTED, backbone="x")), "c")
    with pytest.raises(CacheError, match=r"backbone: here .*; make both with the same settings"):
        merge_caches([tmp_path / "a", tmp_path / "c"], tmp_path / "n")


def test_a_cache_is_not_made_inside_of_one_that_it_is_made_of(tmp_path: Path) -> None:
    write(tmp_path / "a", make_manifest(), "a")
    write(tmp_path / "b", make_manifest(images="f" * 32), "b")
    with pytest.raises(CacheError, match=r"lies in .*a, which the new cache is made of; give another --out"):
        merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "a/inside")
    assert not (tmp_path / "a/inside").exists()
