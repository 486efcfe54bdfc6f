"""Shards are plain HDF5: Hugging Face datasets and h5py open them as they are."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from synthetic import make_manifest, write_cache


def test_shards_open_in_h5py(tmp_path: Path) -> None:
    cache = write_cache(tmp_path)
    with h5py.File(tmp_path / "shard-00001.h5") as file:
        assert sorted(file) == ["embedding", "key", "label", "ok", "row", "views"]
        np.testing.assert_array_equal(file["embedding"][...], cache.embedding(7, 14))
        np.testing.assert_array_equal(file["views"][...], cache.view_embedding(7, 14))
        np.testing.assert_array_equal(file["row"][...], np.arange(7, 14))
        assert file["key"].asstr()[...].tolist() == cache.keys[7:14]
        assert file["ok"][...].tolist() == cache.ok[7:14].tolist()
        assert file.attrs["fingerprint"].decode() == cache.manifest.fingerprint.digest


@pytest.mark.filterwarnings("ignore")  # of the other package
@pytest.mark.parametrize("views", [0, 2])
def test_shards_open_in_hugging_face_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    cache = write_cache(tmp_path / "cache", make_manifest(views=views))
    files = sorted(str(path) for path in (tmp_path / "cache").glob("*.h5"))
    opened = datasets.load_dataset("hdf5", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert opened.num_rows == 20
    assert [key.decode() for key in opened["key"]] == cache.keys
    assert opened["label"][:] == cache.labels.tolist()
    assert opened["ok"][:] == cache.ok.tolist()
    opened = opened.with_format("numpy")
    np.testing.assert_array_equal(opened["embedding"][:], cache.embedding())
    if views:
        np.testing.assert_array_equal(opened["views"][:], cache.view_embedding())


@pytest.mark.filterwarnings("ignore")
def test_keys_are_text_for_who_asks_for_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    cache = write_cache(tmp_path / "cache")
    files = sorted(str(path) for path in (tmp_path / "cache").glob("*.h5"))
    first = datasets.load_dataset("hdf5", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    features = first.features.copy()
    features["key"] = datasets.Value("string")
    opened = datasets.load_dataset(
        "hdf5", data_files=files, split="train", cache_dir=str(tmp_path / "hf"), features=features
    )
    assert opened["key"][:] == cache.keys
