"""Scores without labels: numpy references, and that they see what they claim to."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mixtures import mixture, write_cache
from sklearn.metrics import normalized_mutual_info_score

from temi.pipeline.config import load_config
from temi.pipeline.runs import label_free as select
from temi.pipeline.runs.label_free import (
    choose_trials,
    compared,
    label_free_scores,
    linear_accuracy,
    neighbor_consistency,
    size_scores,
)
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.records import Sizes, Training, TrialRecord, read_record
from temi.pipeline.runs.train import train_heads


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClusterModel, torch.Tensor]:
    folder = tmp_path_factory.mktemp("select")
    embedding, _ = mixture(noise=0.6)
    settings = ["heads.clusters=6", "heads.count=4", "train.min_steps=20", "start.steps=40", "train.tensorboard=false"]
    settings.append("train.device=cpu")  # where the references are
    model = train_heads(write_cache(folder / "cache", embedding), load_config(None, settings), folder / "run")
    return model, torch.from_numpy(embedding.astype(np.float16))


def test_linear_accuracy_equals_numpys_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    x, cluster = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, 4, 60)
    x[np.arange(60), cluster] += 2
    ones, wanted, right = np.c_[x.astype(np.float64), np.ones(60)], np.eye(4)[cluster], 0
    fold = np.random.default_rng(0).permutation(60) % 3
    for held_out in range(3):
        seen = ones[fold != held_out]
        gram = seen.T @ seen
        weight = np.linalg.inv(gram + 0.01 * np.trace(gram) / 6 * np.eye(6)) @ seen.T @ wanted[fold != held_out]
        right += ((ones[fold == held_out] @ weight).argmax(1) == cluster[fold == held_out]).sum()
    assert linear_accuracy(torch.from_numpy(x), torch.from_numpy(cluster), 4) == pytest.approx(right / 60)


def test_linear_accuracy_tells_clusters_from_noise() -> None:
    embedding, label = mixture(noise=0.3)
    x, cluster = torch.from_numpy(embedding).float(), torch.from_numpy(label).long()
    noise = cluster[torch.randperm(len(cluster), generator=torch.Generator().manual_seed(0))]
    assert linear_accuracy(x, cluster, 6) > 0.99
    assert linear_accuracy(x, noise, 6) < 0.3


def test_neighbor_consistency_equals_a_count() -> None:
    cluster, neighbors = torch.tensor([0, 0, 1, 1]), torch.tensor([[1, 2], [0, 3], [3, 0], [2, 1]])
    assert neighbor_consistency(cluster, neighbors) == 0.5


@pytest.mark.parametrize(("heads", "rows"), [(4, 600), (3, 601), (1, 100)])
def test_scores_of_one_pass_are_those_of_a_pass_for_each(
    trained: tuple[ClusterModel, torch.Tensor], monkeypatch: pytest.MonkeyPatch, heads: int, rows: int
) -> None:
    monkeypatch.setattr("temi.pipeline.runs.model.BLOCK_ROWS", 47)
    monkeypatch.setattr(select, "LINEAR_ROWS", 250)
    monkeypatch.setattr(select, "BLOCK_ROWS", 100)
    model, embedding = some_heads(trained[0], heads), trained[1].repeat(2, 1)[:rows]
    generator = torch.Generator().manual_seed(0)
    neighbors = torch.randint(rows, (rows, 7), generator=generator, dtype=torch.int32)
    own = model.heads.probabilities(model.scaling(embedding), model.temperature)
    aligned = own.gather(2, model.alignment[:, None].expand(-1, rows, -1))
    consensus, step = torch.einsum("h,hnc->nc", model.trust, aligned), -(-rows // 250)
    cluster = consensus.argmax(-1)
    labels = model.alignment.argsort(1).gather(1, own.argmax(-1)).numpy()
    nmi = normalized_mutual_info_score
    pairs = [nmi(labels[a], labels[b]) for a in range(heads) for b in range(a + 1, heads)]
    weighted = model.trust[:, None, None] * aligned
    halves = [weighted[part::2].sum(0).argmax(-1).numpy() for part in (0, 1)]
    assert label_free_scores(model, embedding, neighbors).model_dump() == {
        **size_scores(cluster, model.clusters).model_dump(),
        "mean_confidence": pytest.approx(consensus.amax(-1).mean().item(), abs=1e-6),
        "head_agreement": pytest.approx(np.mean(pairs)) if heads > 1 else None,
        "stability": pytest.approx(nmi(*halves)) if heads > 1 else None,
        "neighbor_consistency": pytest.approx((cluster[neighbors.long()] == cluster[:, None]).float().mean().item()),
        "linear_accuracy": linear_accuracy(model.scaling(embedding[::step]), cluster[::step], model.clusters),
    }


def test_clusters_are_counted_by_all_images_of_a_run(tmp_path: Path) -> None:
    embedding = np.repeat(mixture(noise=0.6)[0], 3, axis=0)
    settings = ["heads.clusters=6", "heads.count=4", "train.min_steps=20", "start.steps=40", "train.tensorboard=false"]
    train_heads(write_cache(tmp_path / "cache", embedding), load_config(None, settings), tmp_path / "run")
    training = read_record(Training, tmp_path / "run" / "training.json")
    sizes = pd.read_parquet(tmp_path / "run" / "assignments.parquet")["cluster"].value_counts()
    assert (training.smallest_cluster, training.largest_cluster) == (sizes.min(), sizes.max())


def stability(model: ClusterModel, embedding: torch.Tensor) -> float:
    return label_free_scores(model, embedding, None).stability


def some_heads(model: ClusterModel, count: int) -> ClusterModel:
    parts = {name: getattr(model, name)[:count] for name in ("loss", "trust", "alignment", "temperature")}
    return replace(model, heads=model.heads.select(slice(0, count)), **parts)


def test_stability_is_one_for_equal_heads_and_falls_with_noise(trained: tuple[ClusterModel, torch.Tensor]) -> None:
    model, embedding = trained
    alike = replace(
        model,
        heads=replace(model.heads, weights={k: v[:1].expand_as(v).clone() for k, v in model.heads.weights.items()}),
        alignment=model.alignment[:1].expand_as(model.alignment).clone(),
    )
    assert stability(alike, embedding) == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(0)
    noise = {k: torch.randn(v.shape, generator=generator) for k, v in model.heads.weights.items()}
    assert stability(replace(model, heads=replace(model.heads, weights=noise)), embedding) < 0.6


def test_a_sample_of_many_rows_is_the_same_whatever_the_blocks(
    trained: tuple[ClusterModel, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, embedding = trained
    monkeypatch.setattr(select, "LINEAR_ROWS", len(embedding) // 3)
    whole = label_free_scores(model, embedding, None)
    monkeypatch.setattr("temi.pipeline.runs.model.BLOCK_ROWS", 17)
    parts = label_free_scores(model, embedding, None)
    assert parts.linear_accuracy == whole.linear_accuracy
    assert whole.neighbor_consistency is None


def test_the_trial_whose_heads_agree_is_chosen_or_the_most_confident_of_single_heads() -> None:
    one, two, single = trial("1", 0.9, 0.7), trial("2", 0.8, 0.9), trial("3", None, 0.7)
    assert choose_trials([one, two]) == {2: [one]}
    assert choose_trials([single, two]) == {2: [two]}


def test_trials_are_chosen_within_a_number_of_clusters_and_even_ones_all() -> None:
    small, large = [trial(f"{n}", 0.9, 0.5, 2) for n in range(3)], trial("9", 0.95, 0.9, 5)
    assert choose_trials([small[0], large]) == {}
    assert choose_trials([*small, large]) == {2: small}


def trial(name: str, agreement: float | None, confidence: float, clusters: int = 2) -> TrialRecord:
    sizes = Sizes(clusters=clusters, used_clusters=2, effective_clusters=2, smallest_cluster=1, largest_cluster=1)
    rest = {"steps": 1, "images": 2, "seconds": 1, "trials_in_pass": 1, "skipped_steps": 0, "head_loss": (0.0,)}
    scores = {"stability": None, "neighbor_consistency": None, "linear_accuracy": 1, "selected_head": 0}
    own = {"head_agreement": agreement, "mean_confidence": confidence}
    return TrialRecord(trial=name, settings={}, training=Training(**sizes.model_dump(), **rest, **scores, **own))


def test_heads_compared_are_spread_evenly() -> None:
    assert [list(range(heads))[compared(heads)] for heads in (1, 4, 16)] == [[0], [0, 1, 2, 3], list(range(0, 16, 2))]
    assert 8 <= len(range(50)[compared(50)]) <= 10
