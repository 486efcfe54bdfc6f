from pathlib import Path

import h5py
import numpy as np
import pytest

from temi.cache import CacheError, load_neighbors, save_neighbors

INDEX = np.arange(12, dtype=np.int32).reshape(4, 3)
SIMILARITY = np.linspace(-1, 1, 12, dtype=np.float16).reshape(4, 3)
ATTRIBUTES = {"metric": "cosine", "K": 3, "recall": 0.5, "backend": "größe", "note": ""}


def test_neighbors_are_read_back_as_saved(tmp_path: Path) -> None:
    path = save_neighbors(tmp_path / "neighbors", "exact-3", INDEX, SIMILARITY, ATTRIBUTES)
    assert path == tmp_path / "neighbors" / "exact-3.h5"
    loaded = load_neighbors(tmp_path / "neighbors", "exact-3")
    assert loaded is not None
    np.testing.assert_array_equal(loaded[0], INDEX)
    np.testing.assert_array_equal(loaded[1], SIMILARITY)
    assert loaded[2] == ATTRIBUTES
    assert {name: type(value) for name, value in loaded[2].items()} == {k: type(v) for k, v in ATTRIBUTES.items()}
    assert [path.name for path in path.parent.iterdir()] == ["exact-3.h5"]


def test_saving_again_replaces_and_gives_the_same_bytes(tmp_path: Path) -> None:
    first = save_neighbors(tmp_path, "k", INDEX, SIMILARITY, ATTRIBUTES).read_bytes()
    save_neighbors(tmp_path, "k", INDEX + 1, SIMILARITY, ATTRIBUTES)
    assert save_neighbors(tmp_path, "k", INDEX, SIMILARITY, ATTRIBUTES).read_bytes() == first


def test_missing_neighbors_are_none(tmp_path: Path) -> None:
    assert load_neighbors(tmp_path, "k") is None
    assert load_neighbors(tmp_path / "nowhere", "k") is None


@pytest.mark.parametrize("key", ["../evil", "a/b", "", ".hidden", "a" * 300, "a b", "a\0"])
def test_a_key_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        save_neighbors(tmp_path, key, INDEX, SIMILARITY, {})
    with pytest.raises(ValueError, match="cannot name"):
        load_neighbors(tmp_path, key)


@pytest.mark.parametrize(
    ("index", "similarity"),
    [(INDEX.astype(np.int64), SIMILARITY), (INDEX, SIMILARITY.astype(np.float32)), (INDEX[:3], SIMILARITY)],
)
def test_arrays_that_do_not_fit_are_the_callers_mistake(
    tmp_path: Path, index: np.ndarray, similarity: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="neighbors"):
        save_neighbors(tmp_path, "k", index, similarity, {})


def test_every_flipped_bit_of_the_content_is_detected(tmp_path: Path) -> None:
    path = save_neighbors(tmp_path, "k", INDEX, SIMILARITY, ATTRIBUTES)
    data = path.read_bytes()
    content = data.index(INDEX.tobytes())
    for place in range(content, content + INDEX.nbytes):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CacheError, match=r"damaged.*mines the neighbors again"):
            load_neighbors(tmp_path, "k")


@pytest.mark.parametrize("size", [0, 1, 100, 1000, -1])
def test_a_truncated_file_is_detected(tmp_path: Path, size: int) -> None:
    path = save_neighbors(tmp_path, "k", INDEX, SIMILARITY, ATTRIBUTES)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CacheError, match="damaged"):
        load_neighbors(tmp_path, "k")


def test_hostile_files_are_refused(tmp_path: Path) -> None:
    save_neighbors(tmp_path, "other", INDEX, SIMILARITY, ATTRIBUTES)

    def external(file: h5py.File) -> None:
        file["index"] = h5py.ExternalLink("other.h5", "index")
        file["similarity"] = h5py.ExternalLink("other.h5", "similarity")

    def objects(file: h5py.File) -> None:
        file.create_dataset("index", data=np.array([["a"]], dtype=object), dtype=h5py.string_dtype())
        file.create_dataset("similarity", data=SIMILARITY)

    def huge(file: h5py.File) -> None:
        file.create_dataset("index", shape=(2**38, 2**20), dtype="i4", chunks=(2**10, 2**10))
        file.create_dataset("similarity", data=SIMILARITY)

    def groups(file: h5py.File) -> None:
        file.create_group("index")
        file.create_group("similarity")

    def nothing(file: h5py.File) -> None:
        file.attrs["metric"] = "cosine"

    for make in (external, objects, huge, groups, nothing):
        with h5py.File(tmp_path / "evil.h5", "w") as file:
            make(file)
        with pytest.raises(CacheError, match="damaged"):
            load_neighbors(tmp_path, "evil")
