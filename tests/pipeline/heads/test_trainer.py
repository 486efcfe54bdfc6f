"""Training: what learns, what cannot, what collapses, and that a bad batch or another trial changes nothing."""

import gc
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture, write_cache

from temi.pipeline.config import Config, load_config
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import Batches, load_training_set
from temi.pipeline.heads.schedule import learning_rate, teacher_momentum, total_steps
from temi.pipeline.heads.trainer import HeadTrainer

CPU = torch.device("cpu")


def settings(*overrides: str, clusters: int = 6, steps: int = 300) -> Config:
    base = (
        f"heads.clusters={clusters}",
        "heads.count=4",
        "heads.scale=center",
        "start.kind=random",
        "objective.beta=0.6",
        "neighbors.k=10",
        "train.batch_size=128",
        f"train.min_steps={steps}",
        "train.epochs=0",
        "optimizer.lr=1e-2",
        "teacher.momentum=0.9",
        "teacher.final_momentum=1",
    )
    return load_config(None, [*base, *overrides])


def train(folder: Path, config: Config, embedding: np.ndarray, views: np.ndarray | None = None) -> HeadTrainer:
    data = load_training_set(Features.of_array(embedding, views), config)
    trainer = HeadTrainer([config], data)
    for number, rows in enumerate(trainer.batches.bank_rows(0, trainer.steps)):
        trainer.step(number, rows)
    return trainer


def best_head(trainer: HeadTrainer) -> np.ndarray:
    """Clusters of the head with the lowest mean loss over the whole run."""
    head = int(trainer.window.means()[0].argmin())
    return trainer.teacher.logits(trainer.data.originals)[head].argmax(-1).numpy()


def test_neighbor_pairs_find_the_clusters(tmp_path: Path) -> None:
    embedding, label = mixture()
    assert hungarian_accuracy(label, best_head(train(tmp_path, settings(), embedding))) > 0.95


def test_self_pairs_learn_nothing_where_neighbor_pairs_do(tmp_path: Path) -> None:
    embedding, label = mixture(noise=1.2)
    own = hungarian_accuracy(label, best_head(train(tmp_path / "a", settings("pairs.source=self"), embedding)))
    mined = hungarian_accuracy(label, best_head(train(tmp_path / "b", settings(), embedding)))
    assert own < 0.6 < 0.9 < mined


def test_beta_mi_collapses_where_temi_uses_every_cluster(tmp_path: Path) -> None:
    embedding, _ = mixture(clusters=20, rows=1000)
    collapsed = best_head(train(tmp_path / "a", settings("objective.name=beta-mi", clusters=20), embedding))
    used = best_head(train(tmp_path / "b", settings(clusters=20), embedding))
    assert len(np.unique(collapsed)) <= 10
    assert len(np.unique(used)) == 20


@pytest.mark.parametrize("kind", ["published", "mlp-bn"])
@pytest.mark.parametrize("objective", ["temi", "pmi", "wmi", "scan"])
def test_every_head_and_objective_lowers_its_loss(tmp_path: Path, kind: str, objective: str) -> None:
    embedding, _ = mixture()
    config = settings(f"heads.kind={kind}", f"objective.name={objective}", "heads.hidden=32", steps=80)
    data = load_training_set(Features.of_array(embedding), config)
    trainer = HeadTrainer([config], data)
    means = []
    for number, rows in enumerate(trainer.batches.bank_rows(0, 80)):
        trainer.step(number, rows)
        if number in (9, 79):
            means.append(trainer.window.means()[0].mean().item())
            trainer.window.reset()
    assert means[1] < means[0]
    assert not trainer.skipped.any()


def test_a_fresh_published_head_starts_at_the_loss_of_uniform_predictions(tmp_path: Path) -> None:
    embedding, _ = mixture(rows=2000, dim=64)
    config = settings("heads.kind=published", clusters=100)
    data = load_training_set(Features.of_array(embedding), config)
    trainer = HeadTrainer([config], data)
    trainer.step(0, next(trainer.batches.bank_rows(0, 1)))
    expected = -(2 - 2 * 0.6) * math.log(100) / 100
    assert trainer.window.means()[0].mean().item() == pytest.approx(expected, rel=0.5)
    assert expected == pytest.approx(-0.037, abs=5e-4)


def test_a_bad_batch_is_skipped_by_its_trial_alone_and_leaves_no_trace(tmp_path: Path) -> None:
    embedding, _ = mixture()
    good, bad = settings(), settings("objective.beta=1e38")  # beta log q overflows
    data = load_training_set(Features.of_array(embedding), good)
    both, alone = HeadTrainer([good, bad], data), HeadTrainer([good], data)
    before = {name: tensor[4:].detach().clone() for name, tensor in both.student.weights.items()}
    for number, rows in enumerate(alone.batches.bank_rows(0, 5)):
        both.step(number, rows)
        alone.step(number, rows)
    assert both.skipped.tolist() == both.skipped_in_a_row.tolist() == [0, 5]
    for name, tensor in both.student.weights.items():
        assert torch.equal(tensor[4:], before[name])
        torch.testing.assert_close(tensor[:4], alone.student.weights[name])
    assert both.marginal.isfinite().all()


def test_heads_that_are_finite_and_say_nothing_finite_are_no_heads() -> None:
    """A run of optimizer.lr = 1e38 left such, and could not read its own scores."""
    config = settings("heads.kind=linear")
    trainer = HeadTrainer([config, config], load_training_set(Features.of_array(mixture()[0]), config))
    assert trainer.finite(0)
    for weight in trainer.teacher.weights.values():
        weight[4:].mul_(0).add_(torch.tensor(1e38)).mul_(torch.randn_like(weight[4:]).sign())
    assert all(weight.isfinite().all() for weight in trainer.teacher.weights.values())
    assert trainer.finite(0)
    assert not trainer.finite(1)


def test_gradient_clipping_bounds_the_norm_of_a_trial(tmp_path: Path) -> None:
    embedding, _ = mixture()
    configs = [settings(f"optimizer.clip={clip}", "optimizer.warmup=0") for clip in (0, 1e-4)]
    data = load_training_set(Features.of_array(embedding), configs[0])
    trainer = HeadTrainer(configs, data)
    trainer.step(0, next(trainer.batches.bank_rows(0, 1)))
    free, clipped = (  # after one step from zero, Adam's first moment is a tenth of the gradient
        torch.cat([t.flatten() for name, t in trainer.trial(i).tensors.items() if name.startswith("adam.mean")]).norm()
        * 10
        for i in range(2)
    )
    assert free.item() == pytest.approx(trainer.window.means()[1][0].item(), rel=1e-4)
    assert free.item() > 1e-3
    assert clipped.item() == pytest.approx(1e-4, rel=1e-4)


def test_views_as_partners(tmp_path: Path) -> None:
    embedding, _ = mixture(rows=60)
    views = np.stack([embedding + 1, embedding + 2], axis=1)
    cache = write_cache(tmp_path, embedding, views=views)
    for source, own in (("views", True), ("neighbors+views", False)):
        config = settings(f"pairs.source={source}", "heads.scale=none", "train.batch_size=20")
        data = load_training_set(Features.of_cache(cache, np.arange(cache.rows)), config)
        anchor, partner = next(Batches(data, config.pairs, 20).bank_rows(0, 1)).chunk(2)
        assert (anchor // 3 == partner // 3).all() == own
        if own:
            assert (anchor % 3 == 0).all()
            assert set((partner % 3).tolist()) == {1, 2}
    torch.testing.assert_close(data.bank[4], torch.from_numpy(views[1, 0]).float())


def test_an_epoch_visits_every_row_once_and_partners_are_mined_neighbors(tmp_path: Path) -> None:
    embedding, _ = mixture(rows=60)
    config = settings("train.batch_size=20")
    data = load_training_set(Features.of_array(embedding), config)
    batches = list(Batches(data, config.pairs, 20).bank_rows(0, 3))
    anchors = torch.cat([batch[:20] for batch in batches])
    assert sorted(anchors.tolist()) == list(range(60))
    for batch in batches:
        anchor, partner = batch.chunk(2)
        assert (data.neighbors[anchor] == partner[:, None]).any(1).all()
    resumed = list(Batches(data, config.pairs, 20).bank_rows(2, 5))
    assert torch.equal(resumed[0], batches[2])


def test_schedules() -> None:
    config = load_config(
        None,
        [
            "optimizer.lr=1.0",
            "optimizer.min_lr=0.1",
            "optimizer.warmup=0.1",
            "teacher.momentum=0.996",
            "teacher.final_momentum=1",
        ],
    )
    rate = learning_rate(config.optimizer, 100)
    assert rate[:10].tolist() == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rate[10].item() == pytest.approx(1.0)
    assert rate[-1].item() == pytest.approx(0.1)
    middle = 0.1 + 0.9 * (1 + math.cos(math.pi * 40 / 89)) / 2
    assert rate[50].item() == pytest.approx(middle)
    constant = load_config(None, ["optimizer.schedule=constant", "optimizer.lr=1.0", "optimizer.warmup=0"])
    assert learning_rate(constant.optimizer, 5).tolist() == [1.0] * 5
    momentum = teacher_momentum(config.teacher, 101)
    assert momentum[[0, 50, 100]].tolist() == pytest.approx([0.996, 0.998, 1.0])


def test_a_small_folder_gets_the_floor_of_steps_and_a_large_one_its_epochs() -> None:
    config = load_config(None, ["train.min_steps=2000", "train.epochs=100", "train.batch_size=500"])
    assert total_steps(config, rows=2000) == 2000
    assert total_steps(config, rows=50_000) == 10_000


@pytest.mark.parametrize(("rows", "batch", "steps"), [(600_000, 400_000, 7), (600_000, 60_000, 21), (500, 600, 7)])
def test_an_epoch_has_a_step_however_large_the_batch(rows: int, batch: int, steps: int) -> None:
    config = load_config(None, ["train.min_steps=1", "train.epochs=7", f"train.batch_size={batch}"])
    assert total_steps(config, rows) == steps


@pytest.mark.parametrize("setting", ["train.epochs=1e30", "train.min_steps=200000000"])
def test_steps_that_would_never_end_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=r"train.epochs = .* steps; ask for at most 100,000,000"):
        total_steps(load_config(None, [setting]), rows=2000)


def test_a_trainer_is_freed_with_its_bank_when_nobody_holds_it(tmp_path: Path) -> None:
    gc.disable()  # the collector comes late, and the next pass of a process needs the memory
    try:
        trainer = train(tmp_path, settings(steps=2), mixture()[0])
        left = [weakref.ref(trainer), weakref.ref(trainer.data.bank)]
        del trainer
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()
