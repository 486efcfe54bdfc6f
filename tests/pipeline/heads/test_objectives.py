"""Every objective and regularizer keeps one contract, and a file of one's own adds one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture, write_cache
from torch import Tensor

from temi.pipeline.config import load_config, objective_settings, per_trial
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.features.features import Features
from temi.pipeline.heads import losses
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.objectives import (
    Objective,
    PairBatch,
    Regularizer,
    alike,
    by_autograd,
    register_objective,
    score,
)
from temi.pipeline.heads.stack import ABSENT
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.plugins import load_plugin
from temi.pipeline.registry import OBJECTIVES, REGULARIZERS
from temi.pipeline.runs.run_folder import read_json

TEMI = Path(sys.executable).with_name("temi")
ROOT = Path(__file__).parents[3]
PLUGINS = sorted((ROOT / "examples/plugins").glob("*.py"))
SWAV = next(path for path in PLUGINS if path.stem == "swav")
PAIRS, CLUSTERS = 8, (4, 6, 6)
for path in PLUGINS:
    load_plugin(path)
WHOLE_BATCH = ("objective swav", "objective icon")  # of which a process needs all rows
NAMES = [*(f"objective {name}" for name in OBJECTIVES), *(f"regularizer {name}" for name in REGULARIZERS)]


def loss_of(name: str):  # type: ignore[no-untyped-def]
    kind, _, own = name.partition(" ")
    return OBJECTIVES[own].loss if kind == "objective" else REGULARIZERS[own].loss


def draw_batch(spread: float, seed: int = 0, average: losses.Average = losses.alone) -> PairBatch:
    """Three heads, the first with four clusters of six; all float64."""
    generator = torch.Generator().manual_seed(seed)
    exists = torch.arange(max(CLUSTERS)) < torch.tensor(CLUSTERS)[:, None]
    shape = (len(CLUSTERS), 2 * PAIRS, max(CLUSTERS))

    def logits() -> Tensor:
        values = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.masked_fill(~exists[:, None], 10 * ABSENT)

    marginal = torch.rand(shape[0], shape[2], generator=generator, dtype=torch.float64) * exists
    log_marginal = (marginal / marginal.sum(1, keepdim=True)).clamp_min(losses.TINY).log()
    ones = torch.ones(shape[0], dtype=torch.float64)
    settings = {"beta": 0.6 * ones, "marginal_power": ones, "scan_entropy": 5 * ones, "debias": 0.2 * ones}
    settings |= {"exponent": 0.5 * ones}
    weight = torch.rand(shape[:2], generator=generator, dtype=torch.float64)
    teacher = logits().log_softmax(-1)
    return PairBatch(logits(), teacher, log_marginal, weight, exists, alike(exists), settings, average)


def narrow(batch: PairBatch, head: int) -> PairBatch:
    """One head without the clusters that it lacks."""
    return batch.heads(torch.tensor([head]), CLUSTERS[head])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spread", [1.0, 30.0, 1000.0])
def test_loss_and_gradient_of_heads_with_fewer_clusters_are_those_of_the_heads_alone(name: str, spread: float) -> None:
    batch = draw_batch(spread)
    loss, gradient = loss_of(name)(batch)
    assert loss.shape == (3,)
    assert gradient.shape == batch.scores.shape
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[0, :, CLUSTERS[0] :] == 0).all()
    for head, clusters in enumerate(CLUSTERS):
        own_loss, own_gradient = loss_of(name)(narrow(batch, head))
        torch.testing.assert_close(loss[head], own_loss[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient[head, :, :clusters], own_gradient[0], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_the_gradient_is_the_slope_of_the_loss(name: str, spread: float) -> None:
    batch = draw_batch(spread)
    _, gradient = loss_of(name)(batch)
    random = torch.Generator().manual_seed(1)
    for _ in range(5):
        step = 1e-5 * torch.randn(batch.scores.shape, generator=random, dtype=torch.float64)
        ahead, behind = (
            loss_of(name)(PairBatch(**{**vars_of(batch), "scores": batch.scores + sign * step}))[0] for sign in (1, -1)
        )
        torch.testing.assert_close((ahead - behind) / 2, (gradient * step).sum((1, 2)), rtol=1e-4, atol=1e-10)


def vars_of(batch: PairBatch) -> dict[str, object]:
    return {name: getattr(batch, name) for name in PairBatch.__dataclass_fields__}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WHOLE_BATCH])
def test_two_processes_with_half_a_batch_each_are_one_with_all_of_it(name: str) -> None:
    whole = draw_batch(2.0)
    rows = torch.arange(2 * PAIRS).view(2, 2, PAIRS // 2)  # half of the anchors, and their partners
    halves = [rows[:, part].flatten() for part in (0, 1)]
    means: list[list[Tensor]] = [[], []]

    def take(part: int, average: losses.Average) -> PairBatch:
        cut = {name: getattr(whole, name)[:, halves[part]] for name in ("scores", "teacher", "weight")}
        return PairBatch(**{**vars_of(whole), **cut, "average": average})

    def listen(part: int) -> losses.Average:
        return lambda mean: means[part].append(mean) or mean  # type: ignore[func-returns-value]

    for part in (0, 1):
        loss_of(name)(take(part, listen(part)))
    together = [torch.stack(pair).mean(0) for pair in zip(*means, strict=True)]

    def tell(counter: list[int]) -> losses.Average:
        def average(mean: Tensor) -> Tensor:
            counter[0] += 1
            return together[counter[0] - 1]

        return average

    found = [loss_of(name)(take(part, tell([0]))) for part in (0, 1)]
    loss, gradient = loss_of(name)(whole)
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, loss)
    for part in (0, 1):
        torch.testing.assert_close(found[part][1] / 2, gradient[:, halves[part]])


def test_autograd_equals_the_closed_form_of_temi() -> None:
    def temi(batch: PairBatch) -> Tensor:
        agreement = (
            batch.settings["beta"][:, None, None] * (batch.student + batch.partner) - batch.log_marginal[:, None]
        )
        return -(batch.weight * agreement.logsumexp(-1)).mean(-1)

    batch = draw_batch(3.0)
    for closed, found in zip(OBJECTIVES["temi"].loss(batch), by_autograd(temi)(batch), strict=True):
        torch.testing.assert_close(found, closed, rtol=1e-9, atol=1e-12)


def test_swav_equals_its_reference_in_numpy() -> None:
    batch = draw_batch(2.0)
    loss, _ = OBJECTIVES["swav"].loss(batch)
    for head, clusters in enumerate(CLUSTERS):
        code = np.exp(batch.partner[head, :, :clusters].numpy())
        for _ in range(3):
            code = code / code.sum(0, keepdims=True)
            code = code / code.sum(1, keepdims=True)
        student = batch.student[head, :, :clusters].numpy()
        assert loss[head].item() == pytest.approx(-(code * student).sum(1).mean(), rel=1e-9)


def probabilities(batch: PairBatch, head: int) -> tuple[np.ndarray, np.ndarray]:
    return batch.student[head, :, : CLUSTERS[head]].exp().numpy(), batch.partner[
        head, :, : CLUSTERS[head]
    ].exp().numpy()


def test_the_debiased_kernel_equals_its_reference_in_numpy() -> None:
    batch = draw_batch(2.0)
    loss, _ = OBJECTIVES["icon"].loss(batch)
    for head, clusters in enumerate(CLUSTERS):
        (own, other), marginal = probabilities(batch, head), batch.log_marginal[head, :clusters].exp().numpy()
        kernel = (own / marginal) @ other.T
        rows = np.arange(len(own))
        wanted = -0.8 * np.log(kernel[rows, rows]) - 0.2 * np.log(kernel[rows, rows - 1])
        assert loss[head].item() == pytest.approx(wanted.mean(), rel=1e-9)


def test_information_of_pairs_equals_its_reference_in_numpy() -> None:
    batch = draw_batch(2.0)
    loss, _ = OBJECTIVES["iic"].loss(batch)
    for head in range(len(CLUSTERS)):
        own, other = probabilities(batch, head)
        joint = own.T @ other / len(own)
        joint = (joint + joint.T) / 2
        wanted = (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum()
        assert loss[head].item() == pytest.approx(-wanted, rel=1e-9)


def test_terms_on_sizes_equal_their_references_in_numpy() -> None:
    batch = draw_batch(2.0)
    law, information = (REGULARIZERS[name].loss(batch)[0] for name in ("power-law", "entropies"))
    for head, clusters in enumerate(CLUSTERS):
        own, _ = probabilities(batch, head)
        sizes = np.sort(own.mean(0))[::-1]
        prior = np.arange(1, clusters + 1) ** -0.5
        assert law[head].item() == pytest.approx((sizes * np.log(sizes / (prior / prior.sum()))).sum(), rel=1e-9)
        wanted = (own.mean(0) * np.log(own.mean(0))).sum() - (own * np.log(own)).sum(1).mean()
        assert information[head].item() == pytest.approx(wanted, rel=1e-9)


def test_example_plugins_are_short() -> None:
    assert len(PLUGINS) >= 5
    assert all(len(path.read_text().splitlines()) <= 25 for path in PLUGINS)


def test_trials_of_four_and_six_clusters_train_a_plugin_in_one_pass_as_alone() -> None:
    embedding, _ = mixture(rows=240)
    base = ["objective.name=swav", "heads.count=2", "train.epochs=0", "train.min_steps=20", "heads.scale=center"]
    configs = [load_config(None, [*base, f"heads.clusters={clusters}", "train.batch_size=60"]) for clusters in (4, 6)]
    data = load_training_set(Features.of_array(embedding), configs[0])
    together, alone = HeadTrainer(configs, data), HeadTrainer(configs[:1], data)
    for trainer in (together, alone):
        for number, rows in enumerate(trainer.batches.bank_rows(0, trainer.steps)):
            trainer.step(number, rows)
        assert trainer.skipped.sum() == 0
    weight = together.student.weights["last.weight"]
    assert weight.isfinite().all()
    torch.testing.assert_close(weight[:2, :4], alone.student.weights["last.weight"])


MINE = """
from temi.pipeline.heads.objectives import Objective, Regularizer, by_autograd, register_objective, register_regularizer

def mine(batch):
    return -batch.settings["sharpness"] * (batch.student.exp() * batch.partner.exp()).sum(-1).log().mean(-1)

def spread(batch):
    mean = batch.mean(batch.student.exp())
    return (mean * mean.log()).sum(-1)

register_objective("mine", Objective(by_autograd(mine), settings={"sharpness": 1.0}))
register_regularizer("spread", Regularizer(by_autograd(spread)))
"""
SHORT = ["heads.count=2", "train.epochs=0", "train.min_steps=60", "train.log_every=20", "train.tensorboard=false"]


def temi(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TEMI, *map(str, arguments)], capture_output=True, text=True, timeout=1800)


def settings_of(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def test_a_plugin_trains_from_the_command_line_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    embedding, label = mixture(rows=300, noise=0.3)
    cache = write_cache(tmp_path / "cache", embedding)
    plugin = tmp_path / "mine.py"
    plugin.write_text(MINE)
    chosen = settings_of(*SHORT, "objective.name=mine", "objective.regularizer=spread", "start.kind=random")
    command = ["train-heads", cache.folder, "--clusters", "6", "--out", tmp_path / "run", "--plugin", plugin, *chosen]
    done = temi(*command)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/plugins/mine.py").read_text() == MINE
    assert len(read_json(tmp_path / "run/environment.json")["plugins"]["mine.py"]) == 64
    assert hungarian_accuracy(label, read_clusters(tmp_path / "run")) > 0.5
    unnamed = temi("train-heads", cache.folder, "--out", tmp_path / "other", *settings_of("objective.name=mine"))
    assert unnamed.returncode == 2
    assert "there is no objective 'mine'; choose one of temi, pmi, wmi, scan, beta-mi" in unnamed.stderr
    assert temi("evaluate", tmp_path / "run").returncode == 0  # a finished run needs no plugin
    plugin.write_text(MINE.replace("1.0", "2.0"))
    changed = temi(*command)
    assert changed.returncode == 2
    assert "a file that has changed since" in changed.stderr
    swept = ["--grid", "objective.sharpness=0.5,2", "--out", tmp_path / "trials", "--plugin", plugin]
    assert temi("train-heads", cache.folder, *swept, *chosen, "--clusters", "6").returncode == 0
    settings = [trial["settings"] for trial in read_json(tmp_path / "trials/trials.json")]
    assert settings == [{"objective.sharpness": 0.5}, {"objective.sharpness": 2}]
    assert read_json(tmp_path / "trials/trials.json")[0]["trials_in_pass"] == 2


def read_clusters(run: Path) -> np.ndarray:
    import pandas as pd

    return pd.read_parquet(run / "assignments.parquet")["cluster"].to_numpy("int64")


def test_the_loss_of_readme_and_docs_trains_and_its_setting_does_something(tmp_path: Path) -> None:
    shown = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/adding-an-objective.md")]
    (first, code), (_, other) = (
        re.search(r"```python\n(# mine.py\n)?(from .*?)```", page, re.S).groups() for page in shown
    )
    assert first
    assert code.replace(re.search("  # log.*", code)[0], "") == other
    (tmp_path / "mine.py").write_text(code)
    embedding, label = mixture(rows=300, noise=0.3)
    cache = write_cache(tmp_path / "cache", embedding)
    chosen = settings_of(*SHORT, "objective.name=mine")
    swept = ["--grid", "objective.sharpness=0.5,1,2", "--plugin", tmp_path / "mine.py"]
    done = temi("train-heads", cache.folder, "--clusters", "6", "--out", tmp_path / "runs", *swept, *chosen)
    assert done.returncode == 0, done.stderr
    sure = {trial["mean_confidence"] for trial in read_json(tmp_path / "runs/trials.json")}
    assert len(sure) == 3
    for number in range(3):
        assert hungarian_accuracy(label, read_clusters(tmp_path / f"runs/trial-00{number}")) > 0.9


def test_settings_of_no_plugin_are_unknown_and_names_are_taken_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown setting objective.sharpness in --set"):
        load_config(None, ["objective.sharpness=2"])
    with pytest.raises(UserError, match=r"the objective 'temi' is there already"):
        register_objective("temi", Objective(by_autograd(lambda batch: batch.scores.sum((1, 2)))))
    copy = shutil.copy(SWAV, tmp_path / "again.py")
    with pytest.raises(UserError, match="swav"):
        load_plugin(Path(copy))


def test_what_trials_may_differ_in_is_said_by_the_settings_themselves() -> None:
    free = per_trial(load_config())
    assert {"beta", "name", "marginal_power", "regularizer_weight"} <= free["objective"]
    assert "regularizer" not in free["objective"]
    assert free["heads"] == {"clusters"}
    assert free["pairs"] == free["neighbors"] == set()


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda batch: batch.student.logsumexp(-1).mean(), r"returned shape \(\) where \(2,\) is needed"),
        (lambda batch: batch.student.logsumexp(-1), r"returned shape \(2, 16\) where \(2,\) is needed"),
        (lambda batch: 1.0, r"returned float where \(2,\) is needed, one number per head"),
        (lambda batch: batch.log_marginal.sum(-1), r"does not depend on batch.student or batch.scores"),
        (lambda batch: torch.ones(2, requires_grad=True), r"does not depend on batch.student or batch.scores"),
    ],
)
def test_a_loss_that_is_not_one_number_per_head_is_a_sentence_that_says_where(loss: object, sentence: str) -> None:
    both = draw_batch(1.0).heads(torch.tensor([1, 2]), 6)
    with pytest.raises(UserError, match=r"the loss at .*test_objectives.py:\d+ " + sentence):
        by_autograd(loss)(both)  # type: ignore[arg-type]


UNFIT = """
from temi.pipeline.heads.objectives import Objective, Regularizer, register_objective, register_regularizer

for register, entry in (
    (register_objective, print),
    (register_regularizer, Objective(print)),
    (register_objective, Objective(print, settings={"s": "x"})),
    (register_regularizer, Regularizer(print, settings={"s": True})),
    (register_objective, Objective(print, settings={"s": float("inf")})),
    (register_objective, Objective(print, settings={"s": 1.0, "beta": 7.0})),
    (register_regularizer, Regularizer(print, settings={"name": 1.0})),
    (register_objective, Objective(print, pairs="trail")),
):
    try:
        register("mine", entry)
    except ValueError as error:
        print(error)
"""


def test_what_is_no_objective_is_refused_at_registration() -> None:
    # In a process of its own: here the types of all arguments are checked.
    done = subprocess.run([sys.executable, "-c", UNFIT], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.splitlines() == [
        "the objective 'mine' is no Objective but builtin_function_or_method; register Objective(by_autograd(loss))",
        "the regularizer 'mine' is no Regularizer but Objective; register Regularizer(by_autograd(loss))",
        "the objective 'mine' has the setting s = 'x'; give it a number as default",
        "the regularizer 'mine' has the setting s = True; give it a number as default",
        "the objective 'mine' has the setting s = inf; give it a number as default",
        "the objective 'mine' has the setting beta, which is a setting of temi's own; choose another name",
        "the regularizer 'mine' has the setting name, which is a setting of temi's own; choose another name",
        "the objective 'mine' has pairs = 'trail'; choose one of trial, head, none",
    ]


def sharp(batch: PairBatch) -> Tensor:
    return -batch.settings["sharp"] * (batch.student + batch.partner).logsumexp(-1).mean(-1)


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objectives `one` and `two` of one loss with defaults of their own, and a regularizer of the same setting."""
    loss = by_autograd(sharp)
    for name, default in (("one", 1.0), ("two", 3.0)):
        monkeypatch.setitem(OBJECTIVES._entries, name, Objective(loss, settings={"sharp": default}))
    monkeypatch.setitem(OBJECTIVES._entries, "bare", Objective(loss))
    monkeypatch.setitem(REGULARIZERS._entries, "added", Regularizer(loss, settings={"sharp": 0.5}))


@pytest.mark.usefixtures("entries")
def test_trials_of_a_pass_have_the_defaults_of_their_own_objectives() -> None:
    chosen = [["objective.name=one"], ["objective.name=two"], ["objective.name=two", "objective.sharp=2"]]
    configs = [load_config(None, own) for own in chosen]
    assert objective_settings(configs)["sharp"] == [1.0, 3.0, 2.0]
    assert objective_settings(configs[::-1])["sharp"] == [2.0, 3.0, 1.0]
    lacking = objective_settings([configs[0], load_config(None, ["objective.name=bare"])])["sharp"]
    assert (lacking[0], np.isnan(lacking[1])) == (1.0, True)


@pytest.mark.usefixtures("entries")
def test_one_name_for_settings_of_an_objective_and_a_regularizer_is_refused() -> None:
    with pytest.raises(UserError, match=r"the objective 'one' and the regularizer 'added' both have a setting sharp; "):
        load_config(None, ["objective.name=one", "objective.regularizer=added"])
    assert load_config(None, ["objective.regularizer=added", "objective.sharp=2"]).objective.model_extra == {"sharp": 2}


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize("value", ["inf", "nan", "1e39", "1" + 400 * "0"])
def test_a_setting_of_a_plugin_is_a_number_that_heads_can_compute_with(value: str) -> None:
    with pytest.raises(UserError, match=r"setting objective.sharp in --set: input should be a finite number within 3e"):
        load_config(None, ["objective.name=one", f"objective.sharp={value}"])


def test_a_loss_in_float64_is_converted() -> None:
    both = draw_batch(1.0).heads(torch.tensor([1, 2]), 6)
    tensors = {"scores": both.scores.float(), "teacher": both.teacher.float()}
    settings = {"sharp": torch.ones(2)}
    single = PairBatch(**{**vars_of(both), **tensors, "settings": settings})  # type: ignore[arg-type]
    plain = by_autograd(sharp)(single)
    for double in (by_autograd(lambda batch: sharp(batch).double()), lambda batch: [part.double() for part in plain]):
        found = score("the objective 'x'", double, single)  # type: ignore[arg-type]
        assert [part.dtype for part in found] == [torch.float32, torch.float32]
        torch.testing.assert_close(found, plain)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (by_autograd(sharp), r"failed at .*test_objectives.py:\d+: KeyError: 'sharp'"),
        (lambda batch: batch.scores.sum((1, 2)), r"returned shape \(2,\) where shape \(2,\), the loss per head, and "),
        (lambda batch: None, r"returned NoneType where"),
        (lambda batch: (), r"returned nothing where"),
        (
            lambda batch: (batch.scores.sum((1, 2)), batch.scores[..., :2]),
            r"returned shape \(2,\) and shape \(2, 16, 2\) where .* shape \(2, 16, 6\), its gradient at batch.scores",
        ),
    ],
)
def test_a_loss_that_fails_or_is_no_closed_form_is_a_sentence(loss: object, sentence: str) -> None:
    both = draw_batch(1.0).heads(torch.tensor([1, 2]), 6)
    with pytest.raises(UserError, match=r"^the objective 'x' " + sentence):
        score("the objective 'x'", loss, both)  # type: ignore[arg-type]


def test_a_mistyped_setting_of_a_plugin_is_told_by_the_command(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(MINE.replace('settings["sharpness"]', 'settings["sharpnes"]'))
    cache = write_cache(tmp_path / "cache", mixture(rows=60)[0])
    chosen = settings_of(*SHORT, "objective.name=mine", "start.kind=random")
    done = temi("train-heads", cache.folder, "--clusters", "2", "--out", tmp_path / "run", "--plugin", plugin, *chosen)
    assert done.returncode == 2
    assert f"temi: the objective 'mine' failed at {plugin}:5: KeyError: 'sharpnes'" in done.stderr
    assert "Traceback" not in done.stderr
