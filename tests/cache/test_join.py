from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_manifest, shard_content

from temi.cache import CacheError, EmbeddingCache, Manifest, ShardWriter
from temi.cache.convert.join import join_caches, spaces_of
from temi.cache.fingerprint import IMPORTED, Fingerprint


def write(folder: Path, manifest: Manifest, failures: dict[int, str] | None = None) -> EmbeddingCache:
    with ShardWriter.open(folder, manifest) as writer:
        for shard in writer.pending():
            writer.write(shard, **shard_content(manifest, shard, failures or {}))
        cache = writer.finish()
    assert cache is not None
    return cache


def other_encoder(manifest: Manifest, dim: int) -> Manifest:
    return replace(manifest, dim=dim, fingerprint=replace(manifest.fingerprint, backbone="other"))


def test_a_joined_row_is_the_unit_rows_of_all_spaces(tmp_path: Path) -> None:
    first = write(tmp_path / "a", make_manifest(), {4: "broken"})
    second = write(tmp_path / "b", other_encoder(make_manifest(), 6), {9: "broken, too"})
    joined = join_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", shard_rows=8)
    assert joined.dim == first.dim + 6
    assert spaces_of(joined) == [first.dim, 6]
    assert spaces_of(first) == [first.dim]
    assert joined.keys == first.keys
    assert joined.splits == first.splits
    assert sorted(joined.failures) == [4, 9]
    assert joined.verify() == []
    for rows, one, two in (
        (joined.embedding(), first.embedding(), second.embedding()),
        (joined.view_embedding(), first.view_embedding(), second.view_embedding()),
    ):
        for row in (0, 7, joined.rows - 1):
            expected = [space[row].astype(np.float64) for space in (one, two)]
            expected = [space / np.linalg.norm(space, axis=-1, keepdims=True) for space in expected]
            np.testing.assert_allclose(rows[row].astype(np.float64), np.concatenate(expected, axis=-1), atol=1e-3)
    np.testing.assert_array_equal(joined.labels, first.labels)


def test_a_cosine_is_the_mean_of_the_cosines(tmp_path: Path) -> None:
    caches = [write(tmp_path / "a", make_manifest()), write(tmp_path / "b", other_encoder(make_manifest(), 6))]
    joined = join_caches([cache.folder for cache in caches], tmp_path / "ab")

    def cosine(cache: EmbeddingCache) -> float:
        a, b = cache.embedding()[:2].astype(np.float64)
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(joined) == pytest.approx(np.mean([cosine(cache) for cache in caches]), abs=2e-3)


def test_spaces_are_in_the_fingerprint_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "a", make_manifest())
    write(tmp_path / "b", other_encoder(make_manifest(), 6))
    one = join_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "ab").manifest.fingerprint
    two = join_caches([tmp_path / "b", tmp_path / "a"], tmp_path / "ba").manifest.fingerprint
    assert one.backbone == f"{make_manifest().fingerprint.backbone} + other"
    assert one.digest != two.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 13}, "has 13 images and"),
        ({"splits": {}}, "in its splits"),
        ({"classes": ("x", "y", "z")}, "in its classes"),
        ({"views": 1}, "in its views"),
    ],
)
def test_caches_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path / "a", make_manifest())
    plan = make_manifest(**{key: value for key, value in change.items() if key in ("rows", "views")})  # type: ignore[arg-type]
    if "rows" in change:
        plan = replace(plan, splits={})
    plan = replace(plan, **{key: value for key, value in change.items() if key in ("splits", "classes")})  # type: ignore[arg-type]
    write(tmp_path / "b", plan)
    with pytest.raises(CacheError, match=message):
        join_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    assert not (tmp_path / "ab").exists()


def test_other_images_are_refused_by_the_first_row_that_differs(tmp_path: Path) -> None:
    write(tmp_path / "a", make_manifest())
    manifest = make_manifest()
    with ShardWriter.open(tmp_path / "b", manifest) as writer:
        for shard in writer.pending():
            content = shard_content(manifest, shard, {})
            writer.write(shard, **{**content, "keys": [f"z{key}" for key in content["keys"]]})
        writer.finish()
    with pytest.raises(CacheError, match="row 0 is"):
        join_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")


def test_one_cache_is_not_joined(tmp_path: Path) -> None:
    write(tmp_path / "a", make_manifest())
    with pytest.raises(CacheError, match="two caches or more"):
        join_caches([tmp_path / "a"], tmp_path / "ab")


def test_a_cache_is_not_overwritten_by_what_is_made_of_it(tmp_path: Path) -> None:
    first = write(tmp_path / "a", make_manifest())
    write(tmp_path / "b", other_encoder(make_manifest(), 6))
    with pytest.raises(CacheError, match="which the new cache is made of; give another --out"):
        join_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "a", overwrite=True)
    assert first.verify() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "f" * 32}, "was made from other images than .*, of the same names"),
        ({"view_seed": 7}, "are other crops than those of"),
        ({"view_policy": {"scale": [0.1, 1]}}, "are other crops than those of"),
    ],
)
def test_what_only_looks_alike_is_refused_unless_it_was_made_elsewhere(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write(tmp_path / "a", make_manifest())
    plan = other_encoder(make_manifest(), 6)
    plan = replace(plan, fingerprint=replace(plan.fingerprint, **change))  # type: ignore[arg-type]
    write(tmp_path / "b", plan)
    with pytest.raises(CacheError, match=message):
        join_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    write(tmp_path / "c", replace(plan, fingerprint=replace(plan.fingerprint, pooling=IMPORTED)))
    joined = join_caches([tmp_path / "a", tmp_path / "c"], tmp_path / "ac")
    assert join_caches([tmp_path / "ac", tmp_path / "a"], tmp_path / "aca").dim == joined.dim + 6


def imported(manifest: Manifest, revision: str) -> Manifest:
    made = replace(manifest.fingerprint, pooling=IMPORTED, revision=revision, preprocessing={})
    return replace(manifest, fingerprint=made)


def test_joined_caches_mean_the_same_where_their_spaces_do(tmp_path: Path) -> None:
    """Whatever file imported embeddings came in and however files were decoded, also where a part was joined before."""

    def joined(name: str, revision: str, decoding: str, crop: int = 224) -> Fingerprint:
        home, plan = tmp_path / name, make_manifest()
        here = replace(plan.fingerprint, preprocessing={"decoding": decoding, "crop": [crop, crop]})
        write(home / "a", replace(plan, fingerprint=here))
        write(home / "b", imported(other_encoder(plan, 6), revision))
        write(home / "c", imported(plan, revision))
        join_caches([home / "a", home / "b"], home / "ab")
        return join_caches([home / "ab", home / "c"], home / "abc").manifest.fingerprint

    before = joined("before", "1" * 32, "rgb8")
    assert before.differences_in_meaning(joined("after", "2" * 32, "rgb8, deep gray by its range")) == []
    (difference,) = before.differences_in_meaning(joined("smaller", "2" * 32, "rgb8", crop=98))
    first = "preprocessing.spaces.0"
    assert difference == f"{first}.{first}.preprocessing.crop: here [224, 224], asked [98, 98]"


def test_joined_caches_of_another_encoder_mean_something_else(tmp_path: Path) -> None:
    plan = make_manifest()
    write(tmp_path / "a", imported(plan, "1" * 32))
    write(tmp_path / "b", other_encoder(plan, 6))
    write(tmp_path / "c", replace(plan, dim=6, fingerprint=replace(plan.fingerprint, backbone="other", revision="2")))
    before, after = (
        join_caches([tmp_path / "a", tmp_path / name], tmp_path / f"a{name}").manifest.fingerprint for name in "bc"
    )
    (difference,) = before.differences_in_meaning(after)
    assert difference.startswith("preprocessing.spaces.1.revision: here")
    assert before.differences_in_meaning(plan.fingerprint)


def test_rows_whose_image_is_gone_are_left_out_and_splits_move_along(tmp_path: Path) -> None:
    caches = []
    for name, manifest in (("a", make_manifest()), ("b", other_encoder(make_manifest(), 6))):
        write(tmp_path / name, manifest, {4: "broken"})
        manifest = Manifest.read(tmp_path / name)
        manifest.grown(manifest.fingerprint, 0, 8, classes=manifest.classes, removed=(3, 17), changed=(5,)).write(
            tmp_path / name
        )
        caches.append(EmbeddingCache.open(tmp_path / name))
    joined = join_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", shard_rows=7)
    kept = [row for row in range(caches[0].rows) if row not in (3, 5, 17)]
    assert joined.keys == [caches[0].keys[row] for row in kept]
    assert joined.failures == {3: "broken"}
    split = {
        name: [caches[0].keys[row] for row in kept if start <= row < stop]
        for name, (start, stop) in caches[0].splits.items()
    }
    assert {name: joined.keys[start:stop] for name, (start, stop) in joined.splits.items()} == split
    np.testing.assert_array_equal(joined.labels, caches[0].labels[kept])
    whole = join_caches(
        [
            write(tmp_path / f"{n}2", m, {4: "broken"}).folder
            for n, m in (("a", make_manifest()), ("b", other_encoder(make_manifest(), 6)))
        ],
        tmp_path / "whole",
    )
    np.testing.assert_array_equal(joined.embedding(), whole.embedding()[kept])
    assert joined.verify() == []


def test_an_encoder_that_saw_what_is_left_joins_one_that_saw_all(tmp_path: Path) -> None:
    first = write(tmp_path / "a", replace(make_manifest(), splits={}))
    manifest = Manifest.read(tmp_path / "a")
    manifest.grown(manifest.fingerprint, 0, 8, classes=manifest.classes, removed=(3, 17)).write(tmp_path / "a")
    whole = write(tmp_path / "whole", other_encoder(replace(make_manifest(), splits={}), 6))
    kept = [row for row in range(first.rows) if row not in (3, 17)]
    plan = replace(other_encoder(make_manifest(rows=len(kept), images="f" * 32), 6), splits={}, classes=first.classes)
    with ShardWriter.open(tmp_path / "left", plan) as writer:
        for shard in writer.pending():
            rows = kept[shard.start : shard.stop]
            content = {**shard_content(plan, shard, {}), "keys": [first.keys[row] for row in rows]}
            content |= {"embedding": whole.embedding()[rows], "views": whole.view_embedding()[rows]}
            writer.write(shard, **content)
        writer.finish()
    one = join_caches([tmp_path / "a", tmp_path / "left"], tmp_path / "one")
    two = join_caches([tmp_path / "a", tmp_path / "whole"], tmp_path / "two")
    assert one.keys == two.keys == [first.keys[row] for row in kept]
    np.testing.assert_array_equal(one.embedding(), two.embedding())
    with pytest.raises(CacheError, match=f"has {len(kept)} images and .* has {first.rows}"):
        join_caches([tmp_path / "whole", tmp_path / "left"], tmp_path / "three")
