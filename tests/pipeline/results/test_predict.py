"""New images get the clusters that training images got, strangers are flagged, other weights are refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mixtures import mixture, write_cache
from photos import PhotoRun, photo, short
from scipy.stats import combine_pvalues
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
from typer.testing import CliRunner

from temi.cache import EmbeddingCache
from temi.cache.convert.importing import import_embeddings
from temi.cli import app
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError
from temi.pipeline.features.neighbors import exact_neighbors
from temi.pipeline.results.find import Finder
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.predict import predict
from temi.pipeline.runs.model import save_tensors
from temi.pipeline.runs.novelty import NOVELTY, Novelty
from temi.pipeline.runs.train import train_heads


def test_training_images_get_the_clusters_they_were_assigned(photo_run: PhotoRun, tmp_path: Path) -> None:
    as_embedded = {"backbone": str(photo_run.weights), "device": "cpu"}
    counts = predict(photo_run.run, str(photo_run.photos), tmp_path / "p.parquet", **as_embedded)
    found = pd.read_parquet(tmp_path / "p.parquet")
    expected = pd.read_parquet(photo_run.run / "assignments.parquet")
    assert (counts.images, counts.unreadable) == (45, 1)
    readable = found[found["error"].isna()]
    assert readable["key"].tolist() == expected["key"].tolist()
    assert readable["cluster"].astype(int).tolist() == expected["cluster"].tolist()
    np.testing.assert_allclose(readable["confidence"], expected["confidence"], atol=1e-3)
    broken = found[found["key"] == "blue/7.jpg"].iloc[0]
    assert broken["error"].startswith("not a JPEG")
    assert pd.isna(broken["cluster"])
    assert pd.isna(broken["novel"])


def test_one_image_and_a_moved_run_without_its_cache(photo_run: PhotoRun, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(photo_run.run, moved)
    (moved / "assignments.parquet").unlink()
    image = tmp_path / "new.JPG"
    image.write_bytes(photo((200, 30, 30), np.random.default_rng(5)))
    predict(moved, str(image), tmp_path / "p.csv", backbone=str(photo_run.weights))
    row = pd.read_csv(tmp_path / "p.csv").iloc[0]
    table = pd.read_parquet(photo_run.run / "assignments.parquet")
    reds = table[table["key"].str.startswith("red/")]["cluster"]
    assert row["key"] == "new.JPG"
    assert row["cluster"] in set(reds)
    assert not list(tmp_path.glob("*.part"))


def test_a_stranger_is_flagged_and_a_training_row_is_not(tmp_path: Path) -> None:
    embedding, _ = mixture(rows=400, dim=16, clusters=4, noise=0.3)
    train_heads(write_cache(tmp_path / "cache", embedding), short("heads.clusters=4"), tmp_path / "run")
    strangers = np.random.default_rng(9).standard_normal((40, 16)).astype(np.float16)
    write_cache(tmp_path / "new", np.concatenate([embedding[:200], strangers]))
    predict(tmp_path / "run", str(tmp_path / "new"), tmp_path / "p.parquet")
    novel = pd.read_parquet(tmp_path / "p.parquet")["novel"].to_numpy(bool)
    assert novel[:200].mean() <= 0.1
    assert novel[200:].mean() >= 0.9


def test_both_signs_are_shares_of_the_training_rows_joined_by_fisher(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 8)).astype(np.float32)
    unit = rows.astype(np.float16).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    fifth = np.sort(cosine, axis=1)[:, -5]
    share = rng.dirichlet(np.ones(4), 300).astype(np.float16)
    novelty = replace(Novelty.fit(torch.from_numpy(rows)), probability=share)
    np.testing.assert_allclose(novelty.familiar, fifth, atol=2e-3)
    np.testing.assert_allclose(novelty.similarity(-rows[:9]), np.sort(-unit @ unit[:9].T, axis=0)[-5], atol=2e-3)

    def together(probability: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """Chance to be in one cluster with the ten nearest."""
        ten = np.argsort(-cosines, axis=1, kind="stable")[:, :10]
        return np.array([share[own].astype(np.float32).mean(0) @ p for p, own in zip(probability, ten, strict=True)])

    among = together(share.astype(np.float32), cosine)
    new, said = rng.standard_normal((5, 8)).astype(np.float32), rng.dirichlet(np.ones(4), 5).astype(np.float32)
    near, similarity = novelty.look(new)
    mutual = together(said, new @ unit.T)
    np.testing.assert_allclose(novelty.together(said, near), mutual, rtol=1e-3)
    shares = [[(np.sum(ref <= v) + 1) / 301 for v in x] for ref, x in ((novelty.familiar, similarity), (among, mutual))]
    expected = combine_pvalues(np.minimum(shares, 1), method="fisher").pvalue
    np.testing.assert_allclose(novelty.typical(similarity, near, said), expected, rtol=0.05)  # float16: a rank may move
    own = novelty.typical(novelty.familiar, novelty.near, share)
    assert novelty.is_novel(own).mean() == pytest.approx(0.05, abs=0.005)
    novelty.save(tmp_path / NOVELTY)
    assert Novelty.load(tmp_path / NOVELTY).threshold == novelty.threshold


def test_a_run_of_an_earlier_version_is_judged_by_distance(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float16)
    tensors = {"rows": torch.from_numpy(rows), "threshold": torch.tensor(0.5)}
    save_tensors(tmp_path / NOVELTY, tensors, {"format": "temi-novelty-1"})
    novelty = Novelty.load(tmp_path / NOVELTY)
    similarity, near = np.float32([-1, 0.99]), np.zeros((2, 10), int)
    assert novelty.is_novel(novelty.typical(similarity, near, np.eye(2))).tolist() == [True, False]


def test_drift_is_the_chance_that_a_new_row_lies_farther_off_than_an_old_one() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((300, 8)).astype(np.float32)
    novelty = Novelty.fit(torch.from_numpy(rows))
    among = exact_neighbors(novelty.rows, 5)[1][:, -1].astype(np.float32)
    new = np.concatenate([among[:7], random.uniform(0.3, 1, 40).astype(np.float32)])
    pairs = (new[:, None] < among) + 0.5 * (new[:, None] == among)
    assert novelty.drift(new) == pytest.approx(pairs.mean())
    more = random.standard_normal((2000, 8)).astype(np.float32)
    assert novelty.drift(novelty.similarity(more)) == pytest.approx(0.5, abs=0.05)
    assert novelty.drift(np.full(4, -1, np.float32)) == 1


def test_other_weights_are_refused_by_field(photo_run: PhotoRun, tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(tmp_path / "other")
    processor = BitImageProcessor.from_pretrained(photo_run.weights)
    processor.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r'other embeddings .*revision: here "xxh3:'):
        predict(photo_run.run, str(photo_run.photos), tmp_path / "p.csv", backbone=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"backbone nope cannot be loaded .* trained with: --backbone FOLDER$"):
        predict(photo_run.run, str(photo_run.photos), tmp_path / "p.csv", backbone="nope")
    with pytest.raises(UserError, match="give it by --backbone FOLDER"):
        predict(photo_run.run, str(photo_run.photos), tmp_path / "p.csv")
    foreign = write_cache(tmp_path / "foreign", mixture(rows=20)[0])
    with pytest.raises(UserError, match=r'embedded otherwise .*backbone: here "made-up"'):
        predict(photo_run.run, str(foreign.folder), tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_mistakes_are_sentences(photo_run: PhotoRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p.txt must end in .parquet or .csv"):
        predict(photo_run.run, str(photo_run.cache), tmp_path / "p.txt")
    with pytest.raises(UserError, match="is not a finished run"):
        predict(tmp_path / "nothing", str(photo_run.cache), None)
    damaged = tmp_path / "damaged"
    shutil.copytree(photo_run.run, damaged)
    (damaged / NOVELTY).write_bytes(b"short")
    with pytest.raises(UserError, match=r"novelty.safetensors cannot be read"):
        predict(damaged, str(photo_run.cache), None)


def test_a_run_on_imported_embeddings_takes_imported_ones_and_no_images(photo_run: PhotoRun, tmp_path: Path) -> None:
    embedding = mixture(rows=100, dim=16, clusters=3)[0].astype(np.float32)
    for name, rows in (("old", slice(80)), ("new", slice(80, None))):
        np.save(tmp_path / f"{name}.npy", embedding[rows])
        keys = tmp_path / f"{name}.txt"
        keys.write_text("".join(f"{row}.jpg\n" for row in range(100)[rows]))
        import_embeddings(tmp_path / f"{name}.npy", tmp_path / name, keys=keys)
    train_heads(EmbeddingCache.open(tmp_path / "old"), short("heads.clusters=3"), tmp_path / "run")
    assert predict(tmp_path / "run", str(tmp_path / "new"), tmp_path / "p.csv").images == 20
    sentence = "was trained on imported embeddings, whose encoder is not known; make embeddings of the new images"
    with pytest.raises(UserError, match=sentence):
        predict(tmp_path / "run", str(photo_run.photos), None)
    with pytest.raises(UserError, match=sentence):  # `temi serve` answers this with 400
        Finder(FinishedRun(tmp_path / "run"), None, "cpu").like((photo_run.photos / "green/4.jpg").read_bytes())


def test_the_command_prints_csv_and_nothing_else(photo_run: PhotoRun) -> None:
    result = CliRunner().invoke(app, ["predict", str(photo_run.run), str(photo_run.cache)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.strip().splitlines()
    assert lines[0] == '"key","cluster","name","confidence","similarity","typical","novel","error"'
    assert len(lines) == 46
    assert "45 images" in result.stderr


def test_a_run_at_another_image_size_predicts_at_that_size(photo_run: PhotoRun, tmp_path: Path) -> None:
    settings = EmbedConfig(backbone=str(photo_run.weights), image_size=42, views=0, workers=0, device="cpu")
    cache = embed(str(photo_run.photos), tmp_path / "cache", settings)
    assert cache is not None
    train_heads(cache, short(), tmp_path / "run")
    predict(tmp_path / "run", str(photo_run.photos), tmp_path / "p.parquet", backbone=str(photo_run.weights))
    found = pd.read_parquet(tmp_path / "p.parquet").dropna(subset=["cluster"])
    expected = pd.read_parquet(tmp_path / "run/assignments.parquet")
    assert found["cluster"].astype(int).tolist() == expected["cluster"].tolist()
