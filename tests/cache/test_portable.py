import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from synthetic import FAILURES, contents, make_manifest, write_cache

from temi.cache import CacheError, EmbeddingCache, save_neighbors
from temi.cache.convert.export import export_cache
from temi.cache.convert.importing import import_embeddings
from temi.cache.neighbors import selection_digest

AWKWARD = ['"quoted".jpg', "line\nbreak.jpg", " blanks ", "tab\t.jpg", "\u2028.jpg", "\ufeffbom.jpg", "plain.jpg", ""]


def awkward_cache(folder: Path) -> EmbeddingCache:
    """A cache with names that a text file would garble."""
    from synthetic import shard_content

    from temi.cache import ShardWriter

    manifest, names = make_manifest(), [f"{name}{count or ''}" for count in range(3) for name in AWKWARD]
    with ShardWriter.open(folder, manifest) as writer:
        for shard in writer.pending():
            content = shard_content(manifest, shard)
            content["keys"] = names[shard.start : shard.stop]
            writer.write(shard, **content)
        cache = writer.finish()
    assert cache is not None
    return cache


@pytest.mark.parametrize("name", ["folder", "file.parquet", "file.safetensors"])
@pytest.mark.parametrize("views", [0, 2])
def test_export_and_import_give_the_same_bytes(tmp_path: Path, name: str, views: int) -> None:
    cache = write_cache(tmp_path / "cache", make_manifest(views=views))
    export_cache(cache, tmp_path / "out" / name)
    again = import_embeddings(tmp_path / "out" / name, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "cache")
    assert again.digest == cache.digest
    assert again.failures == FAILURES
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [name]


def test_an_export_is_not_overwritten_by_the_cache_made_of_it(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    export_cache(cache, tmp_path / "out/folder")
    before = contents(tmp_path / "out/folder")
    for out in (tmp_path / "out/folder", tmp_path / "out"):
        with pytest.raises(CacheError, match="which the new cache is made of; give another --out"):
            import_embeddings(tmp_path / "out/folder", out, overwrite=True)
    assert contents(tmp_path / "out/folder") == before


@pytest.mark.parametrize("name", ["folder", "file.parquet", "file.safetensors"])
def test_what_an_exported_cache_has_of_its_own_is_not_given_anew(tmp_path: Path, name: str) -> None:
    cache = write_cache(tmp_path / "cache")
    export_cache(cache, tmp_path / name)
    np.save(tmp_path / "labels.npy", np.array(["ant", "zebra"])[np.arange(cache.rows) % 2])
    with pytest.raises(CacheError, match=r"is an exported cache, .*; leave out --labels and --backbone"):
        import_embeddings(tmp_path / name, tmp_path / "again", labels=tmp_path / "labels.npy", backbone="mine")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["folder", "file.parquet", "file.safetensors"])
def test_awkward_names_survive(tmp_path: Path, name: str) -> None:
    cache = awkward_cache(tmp_path / "cache")
    export_cache(cache, tmp_path / name)
    assert import_embeddings(tmp_path / name, tmp_path / "again").keys == cache.keys
    assert contents(tmp_path / "again") == contents(tmp_path / "cache")


def test_npy_files_are_plain_arrays(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    export_cache(cache, tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "embedding.npy", allow_pickle=False), cache.embedding())
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "views.npy", allow_pickle=False), cache.view_embedding())
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "label.npy", allow_pickle=False), cache.labels)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "ok.npy", allow_pickle=False), cache.ok)
    assert (tmp_path / "out" / "keys.txt").read_text(encoding="utf-8").splitlines() == cache.keys


def test_safetensors_are_plain_tensors(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    export_cache(cache, tmp_path / "out.safetensors")
    tensors = load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(tensors["embedding"], cache.embedding())
    assert tensors["embedding"].dtype == np.float16


def test_parquet_is_as_embedding_atlas_documents_it(tmp_path: Path) -> None:
    """Vectors are lists of floats; neighbors are {"ids": [...], "distances": [...]} with row numbers from 0."""
    cache = write_cache(tmp_path / "cache")
    index = np.array([[(row + 1) % 20, (row + 2) % 20] for row in range(20)], np.int32)
    similarity = np.tile(np.array([0.75, 0.5], np.float16), (20, 1))
    save_neighbors(cache.folder / "neighbors", "exact-2", index, similarity, {"metric": "cosine"})
    export_cache(cache, tmp_path / "out.parquet", neighbors="exact-2")
    table = pq.read_table(tmp_path / "out.parquet")
    assert pa.types.is_large_list(table.schema.field("embedding").type)
    assert table.schema.field("embedding").type.value_type == pa.float32()
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float16), cache.embedding())
    assert table["neighbors"][19].as_py() == {"ids": [0, 1], "distances": [0.25, 0.5]}
    assert table["key"].to_pylist() == cache.keys
    assert table["class"].to_pylist() == [None if label < 0 else cache.classes[label] for label in cache.labels]
    assert table["split"].to_pylist() == ["train"] * 10 + ["test"] * 10
    assert table["failure"].to_pylist()[3] == FAILURES[3]
    frame = table.to_pandas()
    assert frame["embedding"][0].shape == (6,)


def test_export_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    (tmp_path / "there").mkdir()
    for out, neighbors, message in [
        ("there", "", "is there already"),
        ("out.csv", "", r"cannot export to \.csv"),
        ("out", "k", "Parquet only"),
        ("out.parquet", "k", "no neighbors 'k'"),
        ("cache/manifest.json/out", "", "cannot create the folder"),
    ]:
        with pytest.raises(CacheError, match=message):
            export_cache(cache, tmp_path / out, neighbors=neighbors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "there"]
    with pytest.raises(CacheError, match="nothing to export"):
        export_cache(write_cache(tmp_path / "empty", make_manifest(rows=0)), tmp_path / "out")


@pytest.fixture
def elsewhere() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((11, 5)).astype(np.float32)


def expected_keys(rows: int = 11) -> list[str]:
    return [f"bild ä{row}.png" for row in range(rows)]


def check_imported(cache: EmbeddingCache, values: np.ndarray) -> None:
    np.testing.assert_array_equal(cache.embedding(), values.astype(np.float16))
    assert cache.keys == expected_keys()
    assert cache.manifest.fingerprint.precision == str(values.dtype)
    assert cache.ok.all()
    assert cache.verify() == []


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_made_elsewhere(tmp_path: Path, elsewhere: np.ndarray, dtype: Any, newline: str) -> None:
    values = elsewhere.astype(dtype)
    np.save(tmp_path / "e.npy", values)
    np.save(tmp_path / "l.npy", np.arange(11) % 3)
    (tmp_path / "keys.txt").write_bytes(newline.join(expected_keys()).encode())
    cache = import_embeddings(
        tmp_path / "e.npy", tmp_path / "c", keys=tmp_path / "keys.txt", labels=tmp_path / "l.npy", shard_rows=4
    )
    check_imported(cache, values)
    assert cache.labels.tolist() == [row % 3 for row in range(11)]
    assert cache.classes == ("0", "1", "2")
    assert len(cache.manifest.shards) == 3


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list"])
def test_parquet_made_elsewhere(tmp_path: Path, elsewhere: np.ndarray, kind: str) -> None:
    lists = {
        "list": pa.list_(pa.float32()),
        "large_list": pa.large_list(pa.float32()),
        "fixed_size_list": pa.list_(pa.float32(), 5),
    }[kind]
    table = pa.table(
        {
            "embedding": pa.array(elsewhere.tolist(), lists),
            "key": expected_keys(),
            "label": ["dog", "cat"] * 5 + ["ant"],
            "more": list(range(11)),
        }
    )
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=3)
    cache = import_embeddings(tmp_path / "e.parquet", tmp_path / "c", backbone="clip-vit-b-32", shard_rows=4)
    check_imported(cache, elsewhere)
    assert cache.classes == ("ant", "cat", "dog")
    assert cache.labels.tolist() == [2, 1] * 5 + [0]
    assert cache.manifest.fingerprint.backbone == "clip-vit-b-32"


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_parquet_made_elsewhere_whose_row_groups_may_be_empty(
    tmp_path: Path, elsewhere: np.ndarray, empty: int
) -> None:
    """As writers in parallel leave them; `empty` tells before which part one is."""
    table = pa.table({"embedding": elsewhere.tolist(), "key": expected_keys()})
    with pq.ParquetWriter(tmp_path / "e.parquet", table.schema) as writer:
        for place, part in enumerate([table[:4], table[4:], table[:0]]):
            writer.write_table(table[:0] if place == empty else part)
            if place == empty:
                writer.write_table(part)
    file = pq.ParquetFile(tmp_path / "e.parquet")
    assert not file.metadata.row_group(empty).num_rows
    cache = import_embeddings(tmp_path / "e.parquet", tmp_path / "c", shard_rows=4)
    np.testing.assert_array_equal(cache.embedding(), elsewhere.astype(np.float16))
    pq.write_table(table[:0], tmp_path / "none.parquet")
    with pytest.raises(CacheError, match="holds 0 embeddings"):
        import_embeddings(tmp_path / "none.parquet", tmp_path / "none")


def test_safetensors_made_elsewhere(tmp_path: Path, elsewhere: np.ndarray) -> None:
    views = np.stack([elsewhere + 1, elsewhere - 1, elsewhere], axis=1)
    save_file({"embedding": elsewhere, "views": views, "label": np.arange(11)}, tmp_path / "e.safetensors")
    (tmp_path / "keys.txt").write_text("\n".join(expected_keys()) + "\n", encoding="utf-8")
    cache = import_embeddings(tmp_path / "e.safetensors", tmp_path / "c", keys=tmp_path / "keys.txt", shard_rows=5)
    check_imported(cache, elsewhere)
    np.testing.assert_array_equal(cache.view_embedding(), views.astype(np.float16))


def test_an_import_that_was_interrupted_is_resumed(tmp_path: Path, elsewhere: np.ndarray) -> None:
    np.save(tmp_path / "e.npy", elsewhere)
    (tmp_path / "keys.txt").write_text("\n".join(expected_keys()), encoding="utf-8")

    class Stop(Exception):
        pass

    def stop(shard: Any, rows: int) -> None:
        raise Stop

    arguments: dict[str, Any] = {"keys": tmp_path / "keys.txt", "shard_rows": 4}
    with pytest.raises(Stop):
        import_embeddings(tmp_path / "e.npy", tmp_path / "c", progress=stop, **arguments)
    done: list[tuple[int, int]] = []
    arguments["progress"] = lambda shard, rows: done.append((shard.index, rows))
    import_embeddings(tmp_path / "e.npy", tmp_path / "c", **arguments)
    assert done == [(1, 11), (2, 11)]
    np.save(tmp_path / "e.npy", elsewhere + 1)
    with pytest.raises(CacheError, match="revision"):
        import_embeddings(tmp_path / "e.npy", tmp_path / "c", **arguments)


def save_bad(folder: Path, what: str) -> Path:
    """A file that cannot be imported; with keys beside it."""
    good = np.zeros((2, 3), np.float32)
    npy, parquet, tensors = folder / "e.npy", folder / "e.parquet", folder / "e.safetensors"
    lists = {"embedding": [[1.0, 2.0], [3.0, 4.0]], "key": ["a", "b"]}
    tables: dict[str, dict[str, Any]] = {
        "ragged": {**lists, "embedding": [[1.0], [2.0, 3.0]]},
        "null": {**lists, "embedding": [[1.0, 2.0], None]},
        "hole": {**lists, "embedding": [[1.0, 2.0], [3.0, None]]},
        "text": {**lists, "embedding": ["a", "b"]},
        "whole": {**lists, "embedding": [[1, 2], [3, 4]]},
        "no key": {"embedding": lists["embedding"]},
        "null key": {**lists, "key": ["a", None]},
        "real key": {**lists, "key": [1.5, 2.0]},
        "twin key": {**lists, "key": ["a", "a"]},
        "empty key": {**lists, "key": ["a", ""]},
        "bad label": {**lists, "label": [0.5, 1.5]},
        "low label": {**lists, "label": [0, -2]},
    }
    arrays: dict[str, Any] = {
        "axes": np.zeros(3, np.float32),
        "integers": np.zeros((2, 3), np.int64),
        "pickle": np.array([{"a": 1}], dtype=object),
        "NaN": np.array([[1, np.nan], [1, 2]], np.float32),
        "tiny": np.full((2, 3), 1e-8, np.float32),
        "large": np.array([[1, 2], [1e6, 2]], np.float32),
        "rows": np.zeros((3, 3), np.float32),
        "no numbers": np.zeros((2, 0), np.float32),
        "no rows": np.zeros((0, 3), np.float32),
    }
    if what in tables:
        pq.write_table(pa.table(tables[what]), parquet)
        return parquet
    if what in arrays:
        np.save(npy, arrays[what], allow_pickle=True)
        return npy
    if what.startswith("truncated"):
        np.save(npy, good)
        pq.write_table(pa.table(lists), parquet)
        save_file({"embedding": good}, tensors)
        path = folder / what.removeprefix("truncated ")
        path.write_bytes(path.read_bytes()[:-9])
        return path
    if what == "bf16":
        header = json.dumps({"embedding": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
        tensors.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    else:
        save_file({"other": good}, tensors)
    return tensors


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("ragged", "all of one length"),
        ("null", "all of one length"),
        ("hole", "not finite"),
        ("text", "instead of lists"),
        ("whole", "list of floats"),
        ("no key", "needs `embedding` and `key`"),
        ("null key", "has no key in 1 row"),
        ("real key", "instead of text or whole numbers"),
        ("twin key", "2 rows with the key 'a'"),
        ("empty key", "image name 2 is empty; give every image a name"),
        ("no numbers", "holds 2 embeddings of 0 numbers; give at least one"),
        ("no rows", "holds 0 embeddings of 3 numbers; give at least one"),
        ("tiny", r"embedding of a \(row 0\) loses .* in float16, its values are too small"),
        ("bad label", "not one number or name"),
        ("low label", "number classes from 0"),
        ("axes", "one vector per image"),
        ("integers", "one vector per image"),
        ("pickle", "plain numbers"),
        ("NaN", r"embedding of a \(row 0\) holds a value that is not finite"),
        ("large", r"embedding of b \(row 1\) holds a value that is not finite or beyond 65504"),
        ("rows", "does not fit together: 3 embedding, 2 keys"),
        ("truncated e.npy", "plain numbers"),
        ("truncated e.parquet", "not a valid Parquet file"),
        ("truncated e.safetensors", "not a valid safetensors file"),
        ("bf16", "BF16"),
        ("no tensor", "no tensor `embedding`"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_a_sentence(tmp_path: Path, what: str, message: str) -> None:
    path = save_bad(tmp_path, what)
    keys = None
    if path.suffix != ".parquet":
        keys = tmp_path / "keys.txt"
        keys.write_text("a\nb\n")
    with pytest.raises(CacheError, match=message):
        import_embeddings(path, tmp_path / "c", keys=keys)


@pytest.mark.parametrize("names", ["a\n\nb\n", "a\n\n", "a\r\nb\r\n\r\n"])
def test_an_empty_line_is_no_image_name_and_nothing_is_left_behind(tmp_path: Path, names: str) -> None:
    np.save(tmp_path / "e.npy", np.ones((2, 3), np.float32))
    (tmp_path / "keys.txt").write_text(names, newline="")
    with pytest.raises(CacheError, match=r"image name [23] is empty; give every image a name"):
        import_embeddings(tmp_path / "e.npy", tmp_path / "c", keys=tmp_path / "keys.txt")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("labels", "numbers", "classes"),
    [
        ([0, None, 2], [0, -1, 2], ("0", "1", "2")),
        ([0.0, float("nan"), 2.0], [0, -1, 2], ("0", "1", "2")),
        ([True, False, None], [1, 0, -1], ("False", "True")),
        (["b", "a", None], [1, 0, -1], ("a", "b")),
        (["b", "", "-1"], [0, -1, -1], ("b",)),
        ([-1, -1, -1], [-1, -1, -1], ()),
        ([5, 2**40, -1], [0, 1, -1], ("5", str(2**40))),
    ],
)
def test_labels_and_keys_of_any_table(tmp_path: Path, labels: list[Any], numbers: list[int], classes: tuple) -> None:
    table = pa.table({"embedding": [[1.0, 2.0]] * 3, "key": [7, 8, 9], "label": labels})
    pq.write_table(table, tmp_path / "e.parquet")
    cache = import_embeddings(tmp_path / "e.parquet", tmp_path / "c")
    assert (cache.labels.tolist(), cache.classes, cache.keys) == (numbers, classes, ["7", "8", "9"])


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("split", ["", "train", "test"])
def test_neighbors_are_aligned_to_the_rows_of_the_cache(
    tmp_path: Path, split: str, equal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph is that of readable rows, maybe without copies; splits of equal size are told apart."""
    cache = write_cache(tmp_path / "cache")
    start, stop = cache.splits.get(split, (0, cache.rows))
    rows = np.flatnonzero(cache.ok)
    rows = rows[(rows >= start) & (rows < stop)]
    selected = [cache.digest, selection_digest(rows)]
    if equal:  # as if every second row were a copy of the one before
        first = np.arange(0, len(rows), 2)
        monkeypatch.setattr("temi.cache.convert.export._first_of_equals", lambda values: first)
        selected.append(selection_digest(first))
        rows = rows[first]
    index = np.stack([np.roll(np.arange(len(rows)), -step) for step in (1, 2)], 1).astype(np.int32)
    key = "some-key"
    attributes: dict[str, Any] = {"metric": "cosine", "k": 2, "scale": "l2", "embeddings": "-".join(selected)}
    save_neighbors(cache.folder / "neighbors", key, index, np.full(index.shape, 0.5, np.float16), attributes)
    export_cache(cache, tmp_path / "out.parquet", neighbors=key)
    found = [value["ids"] for value in pq.read_table(tmp_path / "out.parquet")["neighbors"].to_pylist()]
    assert len(rows) < cache.rows == len(found)
    for row in range(cache.rows):
        place = np.flatnonzero(rows == row)
        assert found[row] == (rows[index[place[0]]].tolist() if len(place) else [-1, -1])
    attributes["embeddings"] = f"{cache.digest}-0123456789abcdef"
    save_neighbors(cache.folder / "neighbors", "odd", index[:3] % 3, np.ones((3, 2), np.float16), attributes)
    with pytest.raises(CacheError, match="does not tell which rows"):
        export_cache(cache, tmp_path / "odd.parquet", neighbors="odd")


def test_import_says_what_is_missing(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.zeros((2, 3), np.float32))
    save_file({"embedding": np.zeros((2, 3), np.float32)}, tmp_path / "e.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.txt").write_bytes(b"\xff\n")
    for source, keys, message in [
        ("e.npy", None, "give --keys"),
        ("e.safetensors", None, "give --keys"),
        ("e.npy", "bad.txt", "not a text file"),
        ("e.npy", "none.txt", "not a text file"),
        ("nothing.npy", None, "does not exist"),
        ("folder", None, "not an exported cache"),
        ("bad.txt", None, "cannot import"),
    ]:
        with pytest.raises(CacheError, match=message):
            import_embeddings(tmp_path / source, tmp_path / "c", keys=tmp_path / keys if keys else None)


@pytest.mark.parametrize("name", ["manifest.json", "failures.csv", "keys.txt", "label.npy", "views.npy"])
def test_an_exported_folder_without_a_part_is_refused(tmp_path: Path, name: str) -> None:
    export_cache(write_cache(tmp_path / "cache"), tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(CacheError, match=r"missing|not an exported cache|not a text file|not a \.npy"):
        import_embeddings(tmp_path / "out", tmp_path / "again")
