"""The run folder: resume is bit-exact, labels play no part, settings are guarded, trouble is a sentence."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mixtures import mixture, write_cache

from temi.cache import EmbeddingCache
from temi.pipeline.config import Config, load_config
from temi.pipeline.errors import UserError
from temi.pipeline.features.blocks import CachedRows
from temi.pipeline.runs import train as run_module
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.run_folder import OWN, RunFolder, describe_environment, read_json, write_json
from temi.pipeline.runs.train import train_heads


def settings(*overrides: str) -> Config:
    base = [
        "heads.clusters=6",
        "heads.count=3",
        "neighbors.k=10",
        "train.batch_size=128",
        "train.epochs=0",
        "start.kind=random",
    ]
    more = ["train.min_steps=60", "train.log_every=10", "train.checkpoint_every=20", "train.tensorboard=false"]
    return load_config(None, [*base, *more, *overrides])


def model_bytes(folder: Path) -> bytes:
    return (folder / "heads.safetensors").read_bytes()


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0], failures={5: "truncated"})
    model = train_heads(cache, settings("train.tensorboard=true", "train.keep_every=40"), tmp_path / "run")
    run = tmp_path / "run"
    table = pd.read_parquet(run / "assignments.parquet")
    assert list(table.columns) == ["key", "row", "cluster", "confidence"]
    assert len(table) == cache.rows - 1
    assert 5 not in set(table["row"])
    pd.testing.assert_series_equal(pd.read_csv(run / "assignments.csv")["cluster"], table["cluster"], check_dtype=False)
    sizes = table["cluster"].value_counts().reindex(range(6), fill_value=0)
    assert sizes.is_monotonic_decreasing  # clusters are numbered by falling size
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    training = json.loads((run / "training.json").read_text())
    assert training["selected_head"] == int(np.argmin(training["head_loss"])) == model.selected
    assert (run / "checkpoints" / "step-000040.safetensors").exists()
    assert list((run / "events").iterdir())
    environment = json.loads((run / "environment.json").read_text())
    assert environment["cache"]["digest"] == cache.digest
    assert environment["packages"]["torch"]
    assert load_config(run / "config.toml") == settings("train.tensorboard=true", "train.keep_every=40")


def test_an_environment_reads_back_as_it_was_wherever_the_cache_is(tmp_path: Path) -> None:
    cache = write_cache(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), mixture(rows=50)[0])
    run, environment = RunFolder(tmp_path / "run"), describe_environment(cache, torch.device("cpu"))
    run.start(settings(), environment, overwrite=False)
    assert run.begun_with() == environment
    write_json(run.environment, {"cache": {"folder": "a"}})
    with pytest.raises(UserError, match=r"environment\.json is damaged \('fingerprint'\)"):
        run.begun_with()


def test_a_finished_run_started_again_reads_no_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    train_heads(cache, settings(), tmp_path / "run")
    before = model_bytes(tmp_path / "run")
    monkeypatch.setattr(CachedRows, "__iter__", lambda rows: pytest.fail("read again"))
    train_heads(cache, settings(), tmp_path / "run")
    assert model_bytes(tmp_path / "run") == before
    with pytest.raises(UserError, match=r"objective\.beta"):
        train_heads(cache, settings("objective.beta=0.5"), tmp_path / "run")


def test_labels_change_nothing_before_evaluate(tmp_path: Path) -> None:
    embedding, label = mixture()
    train_heads(write_cache(tmp_path / "a", embedding, label), settings(), tmp_path / "run a")
    shuffled = np.random.default_rng(0).permutation(label)
    train_heads(write_cache(tmp_path / "b", embedding, shuffled), settings(), tmp_path / "run b")
    a, b = (
        ClusterModel.load(tmp_path / "run a/heads.safetensors"),
        ClusterModel.load(tmp_path / "run b/heads.safetensors"),
    )
    assert torch.equal(a.alignment, b.alignment)
    assert torch.equal(a.loss, b.loss)
    for name, tensor in a.heads.tensors().items():
        assert torch.equal(tensor, b.heads.tensors()[name])
    for table in ("assignments.csv", "metrics.jsonl"):
        assert (tmp_path / "run a" / table).read_bytes() == (tmp_path / "run b" / table).read_bytes()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["linear", "mlp-bn"])
@pytest.mark.parametrize("steps_before", [15, 20, 47])
def test_a_killed_run_resumes_bit_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, steps_before: int
) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    config = settings(f"heads.kind={kind}", "heads.hidden=16")
    train_heads(cache, config, tmp_path / "whole")
    step, taken = run_module.HeadTrainer.step, []

    def dying(trainer: object, number: int, rows: object) -> None:
        if len(taken) == steps_before:
            raise Killed
        taken.append(number)
        step(trainer, number, rows)

    monkeypatch.setattr(run_module.HeadTrainer, "step", dying)
    with pytest.raises(Killed):
        train_heads(cache, config, tmp_path / "parts")
    monkeypatch.setattr(run_module.HeadTrainer, "step", step)
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "los')  # as a full disk leaves it
    train_heads(cache, config, tmp_path / "parts")
    assert model_bytes(tmp_path / "parts") == model_bytes(tmp_path / "whole")
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_process_killed_at_a_random_moment_resumes_bit_exactly(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    config = settings("train.min_steps=400", "train.checkpoint_every=7", "train.log_every=5")
    train_heads(cache, config, tmp_path / "whole")
    script = (
        "import sys; from pathlib import Path; from temi.cache import EmbeddingCache;"
        "from temi.pipeline.runs.train import train_heads; from temi.pipeline.config import load_config;"
        "root = Path(sys.argv[1]);"
        "train_heads(EmbeddingCache.open(root / 'cache'), load_config(root / 'whole/config.toml'), root / 'parts')"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    for delay in (0.0, 0.15, 0.4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "parts/checkpoints/latest.safetensors").exists():
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert model_bytes(tmp_path / "parts") == model_bytes(tmp_path / "whole")


def test_another_setting_or_cache_is_refused_by_name_and_overwrite_starts_again(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    train_heads(cache, settings(), tmp_path / "run")
    with pytest.raises(UserError, match=r"objective.beta = 1.0 and 0.8 is asked"):
        train_heads(cache, settings("objective.beta=0.8"), tmp_path / "run")
    other = write_cache(tmp_path / "other", mixture(seed=1)[0])
    with pytest.raises(UserError, match=r"other embeddings"):
        train_heads(other, settings(), tmp_path / "run")
    train_heads(other, settings("objective.beta=0.8"), tmp_path / "run", overwrite=True)
    assert load_config(tmp_path / "run/config.toml").objective.beta == 0.8


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "project/cache", mixture()[0])
    photo, out = tmp_path / "project/photos/1.png", tmp_path / "project"
    photo.parent.mkdir()
    photo.write_bytes(b"a photo")
    train_heads(cache, settings(), out)
    assert {path.name for path in out.iterdir()} - {"cache", "photos"} < set(OWN)
    stale = out / "checkpoints/step-00000001.safetensors"
    stale.write_bytes(b"")
    train_heads(cache, settings("objective.beta=0.8"), out, overwrite=True)
    assert photo.read_bytes() == b"a photo"
    assert EmbeddingCache.open(cache.folder).rows == cache.rows
    assert not stale.exists()


def test_corrections_of_a_run_that_is_overwritten_are_kept_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    for number in (1, 2):
        run.folder.mkdir(exist_ok=True)
        for name in ("config.toml", "environment.json"):
            (run.folder / name).write_text("")
        (run.folder / "corrections.jsonl").write_text('{"action":"undo"}\n' * number)
        run.remove()
        kept = run.folder / f"corrections-{number}.jsonl"
        assert kept.read_text() == '{"action":"undo"}\n' * number
        noun = "1 correction" if number == 1 else "2 corrections"
        assert capsys.readouterr().err == f"note: {noun} of the run that is overwritten: kept in {kept}\n"
    assert {path.name for path in run.folder.iterdir()} == {"corrections-1.jsonl", "corrections-2.jsonl"}


def test_what_is_no_finished_run_is_told_by_what_it_is(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "my cache", mixture(rows=20)[0]).folder
    begun = tmp_path / "my run"
    begun.mkdir()
    (begun / "config.toml").write_text("")
    for folder, sentence in {
        cache: f"but an embedding cache; train one on it: `temi train-heads '{cache}' --out RUN`",
        begun: f"; run (or resume) `temi train-heads CACHE --out '{begun}'`",
        tmp_path: "; give the --out of a finished `temi train-heads`",
        tmp_path / "no": ", as it does not exist; give the --out of a finished `temi train-heads`",
    }.items():
        with pytest.raises(UserError) as told:
            RunFolder(folder).check_finished()
        assert str(told.value).replace(" is not a finished run ", " is not a finished run") in (
            f"{folder} is not a finished run{sentence}"
        )


def test_a_mistake_before_the_first_checkpoint_does_not_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, run = write_cache(tmp_path / "cache", mixture()[0]), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(run_module.HeadTrainer, "step", lambda *_: pytest.fail("a mistake in a loss", pytrace=False))
        with pytest.raises(pytest.fail.Exception):
            train_heads(cache, settings(), run)
    assert (run / "config.toml").exists()
    train_heads(cache, settings("objective.beta=0.8"), run)
    assert load_config(run / "config.toml").objective.beta == 0.8
    with pytest.raises(UserError, match=r"objective.beta = 0.8"):
        train_heads(cache, settings(), run)


def test_what_is_no_run_is_not_deleted(tmp_path: Path) -> None:
    cache, mine = write_cache(tmp_path / "cache", mixture()[0]), tmp_path / "mine"
    mine.mkdir()
    (mine / "config.toml").write_text("x = 1")
    RunFolder(mine).remove()
    assert (mine / "config.toml").exists()
    with pytest.raises(UserError, match="cache is the folder of a cache; give the run a folder of its own by --out"):
        train_heads(cache, settings(), cache.folder)


def test_a_run_has_its_place_outside_of_caches_trials_and_studies(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    before = sorted(cache.folder.rglob("*"))
    for inside in ("run", "neighbors", "my/run"):
        with pytest.raises(UserError, match=r"is in the folder of the cache .*; give a folder outside of it by --out"):
            train_heads(cache, settings(), cache.folder / inside)
    assert sorted(cache.folder.rglob("*")) == before
    for many in ("trials.json", "trial-000", "study.db"):
        out = tmp_path / f"with {many}"
        (out / many).mkdir(parents=True)
        with pytest.raises(UserError, match=f"holds {many} .*; choose another --out for a single run"):
            train_heads(cache, settings(), out)
        assert [path.name for path in out.iterdir()] == [many]
    for other in (tmp_path, tmp_path / "run"):
        other.mkdir(exist_ok=True)
        (other / "manifest.json").write_text('{"name": "of another program"}')
    train_heads(cache, settings(), tmp_path / "run")
    assert (tmp_path / "run/manifest.json").read_text() == '{"name": "of another program"}'
    (cache.folder / "manifest.json").write_text("{")  # a damaged cache is one, too
    with pytest.raises(UserError, match="cache is the folder of a cache"):
        RunFolder(cache.folder).check_place()


def test_one_process_at_a_time_trains_a_run(tmp_path: Path) -> None:
    cache, run = write_cache(tmp_path / "cache", mixture()[0]), tmp_path / "run"
    with RunFolder(run).claim(), pytest.raises(UserError, match=f"another process is training {run}; wait for it"):
        train_heads(cache, settings(), run)
    train_heads(cache, settings(), run)
    assert not list(run.glob("*.lock"))


def test_what_another_process_finishes_before_it_is_claimed_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, run = write_cache(tmp_path / "cache", mixture()[0]), tmp_path / "run"
    train_heads(cache, settings(), run)
    before, settled = model_bytes(run), iter([False])
    monkeypatch.setattr(RunFolder, "settled", property(lambda folder: next(settled, True)))  # not yet, when first asked
    train_heads(cache, settings(), run)
    assert model_bytes(run) == before
    assert not list(run.glob("*.lock"))


def test_training_that_cannot_go_on_says_so(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    with pytest.raises(UserError, match=r"cannot go on: the last 20 steps before step 20"):
        train_heads(cache, settings("objective.beta=1e38", "train.max_skipped=20"), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["heads.clusters=601"], "heads.clusters = 601 is more than the 600 images"),
        (["neighbors.k=600"], "neighbors.k = 600 needs more than 600 images"),
        (["pairs.source=views"], "needs augmented views"),
        (["train.split=validation"], "has no split 'validation'"),
        (["train.device=cuda:99"], "device 'cuda:99' is not available"),
    ],
)
def test_settings_that_do_not_fit_the_cache(tmp_path: Path, overrides: list[str], sentence: str) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    with pytest.raises(UserError, match=sentence):
        train_heads(cache, settings(*overrides), tmp_path / "run")


def test_only_readable_rows_of_the_train_split_are_trained_on(tmp_path: Path) -> None:
    cache = write_cache(
        tmp_path / "cache", mixture()[0], splits={"train": (0, 400), "test": (400, 600)}, failures={3: "broken"}
    )
    train_heads(cache, settings(), tmp_path / "run")
    assert json.loads((tmp_path / "run/training.json").read_text())["images"] == 399


def test_a_damaged_model_file_is_a_sentence(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    train_heads(cache, settings(), tmp_path / "run")
    path = tmp_path / "run/heads.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"heads.safetensors cannot be read"):
        ClusterModel.load(path)
    os.remove(path)
    with pytest.raises(UserError, match="does not exist"):
        ClusterModel.load(path)


@pytest.mark.parametrize("value", [None, 7, [], {}, True])
def test_an_environment_of_other_types_is_damaged(tmp_path: Path, value: object) -> None:
    cache = write_cache(tmp_path / "cache", mixture(rows=60, dim=8, clusters=3)[0])
    train_heads(cache, settings("train.min_steps=20"), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    environment = json.loads(run.environment.read_text())
    run.environment.write_text(json.dumps(environment | {"cache": environment["cache"] | {"folder": value}}))
    with pytest.raises(UserError, match=rf"environment.json is damaged \(cache.folder is {re.escape(repr(value))}\)"):
        run.begun_with()


def test_json_that_nests_without_end_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match=r"training.json cannot be read \(maximum recursion depth"):
        read_json(tmp_path / "training.json")
