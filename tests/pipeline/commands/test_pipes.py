"""The end of a pipe is quiet, a full output is one sentence, and a default that nobody asked for is said."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from mixtures import mixture, write_cache
from photos import short
from typer.testing import CliRunner

from temi.cli import app
from temi.pipeline.commands.console import typed, user_errors
from temi.pipeline.runs.train import train_heads

TEMI = Path(sys.executable).with_name("temi")
QUICK = [
    f"--set={key}"
    for key in ("heads.count=2", "neighbors.k=5", "train.min_steps=20", "train.epochs=0", "train.tensorboard=false")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 3,000 rows, so that predictions do not fit the buffer of a pipe; its cache lies beside it."""
    home = tmp_path_factory.mktemp("pipes")
    embedding, _ = mixture(rows=3000, dim=16, clusters=3, noise=0.3)
    train_heads(write_cache(home / "cache", embedding), short("train.min_steps=20"), home / "run")
    return home / "run"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=1800)


@pytest.mark.long
def test_the_end_of_a_pipe(run: Path) -> None:
    predict = f"{TEMI} predict {run} {run.parent / 'cache'}"
    full = shell(f"{predict} > /dev/full")
    assert full.returncode == 2
    assert full.stderr.count("temi: cannot write the output: No space left on device") == 1
    closed = shell(f"{predict} | head -1")
    assert closed.returncode == 0
    assert closed.stdout == '"key","cluster","name","confidence","similarity","typical","novel","error"\n'
    table = shell(f"{TEMI} names {run} | true")
    assert table.returncode == 0
    for done in (full, closed, table):
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr


@pytest.mark.long
def test_training_whose_progress_nobody_reads_any_more_goes_on(run: Path, tmp_path: Path) -> None:
    command = f"{TEMI} train-heads {run.parent / 'cache'} --clusters 3 --out {tmp_path / 'run'} {' '.join(QUICK)}"
    closed = shell(f"{command} 2>&1 | head -1")
    assert closed.returncode == 0, closed.stderr
    assert closed.stdout.startswith("memory: about ")
    assert (tmp_path / "run" / "training.json").exists()


def test_ten_clusters_that_nobody_asked_for_are_said(run: Path, tmp_path: Path) -> None:
    cache = str(run.parent / "cache")
    said = CliRunner().invoke(app, ["train-heads", cache, "--out", str(tmp_path / "a"), *QUICK]).output
    assert "note: 10 clusters were made because that is the default" in said
    assert "--clusters auto" in said
    swept = ["--grid", "objective.beta=0.6,1", "--out", str(tmp_path / "c"), *QUICK]
    said = CliRunner().invoke(app, ["train-heads", cache, *swept]).output
    assert "note: 10 clusters were made because that is the default" in said
    asked = CliRunner().invoke(app, ["train-heads", cache, "--out", str(tmp_path / "b"), *QUICK, "--clusters", "3"])
    assert asked.exit_code == 0
    assert "because that is the default" not in asked.output


@pytest.mark.long
def test_no_trial_is_called_best_across_numbers_of_clusters(run: Path, tmp_path: Path) -> None:
    words = ["train-heads", str(run.parent / "cache"), "--clusters", "3,5", *QUICK]
    said = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a")]).output
    assert "note: scores of different numbers of clusters do not compare" in said
    assert "most trustworthy" not in said
    assert " * " not in said
    swept = [*words, "--grid", "objective.beta=0.6,1", "--out", str(tmp_path / "b")]
    said = CliRunner().invoke(app, swept).output
    for number in (3, 5):
        assert f" without labels of {number} clusters: trial-00" in said


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["embed", "--help"], ["cache"]])
def test_help_and_version_on_a_full_disk_are_one_sentence(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            app(words, prog_name="temi")
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "temi: cannot write the output: No space left on device; write it to another place\n"
    )


def test_an_output_that_is_closed_stops_no_work(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    for words in (["--version"], ["cache", "info", str(run.parent / "cache")], ["evaluate", str(run)]):
        with pytest.raises(SystemExit) as ended:
            app(words, prog_name="temi")
        assert ended.value.code == 0, words
    assert (run / "result.json").exists()
    sys.stdout.close()
    sys.stderr.close()


def test_a_table_that_nobody_could_read_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as ended:
        app(["predict", str(run), str(run.parent / "cache")], prog_name="temi")
    sys.stdout.close()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "temi: cannot write the output: it is closed; give --out, or leave it open\n"


@pytest.mark.parametrize(
    ("path", "words"),
    [("./-x/r", "./-x/r"), ("-x/a b", "'./-x/a b'"), ("r/-x", "r/-x"), ("/a/-x", "/a/-x")],
)
def test_a_path_in_a_hint_is_no_option(path: str, words: str) -> None:
    assert typed(Path(path)) == words


def test_memory_that_torch_does_not_fit_in_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for reason in ("failed to map segment from shared object", "Cannot allocate memory"):
        with pytest.raises(typer.Exit) as ended, user_errors():
            raise ImportError(f"libtorch_cuda.so: {reason}")
        assert ended.value.exit_code == 2
        assert capsys.readouterr().err == (
            f"temi: a library cannot be loaded (libtorch_cuda.so: {reason}): the memory that a process may have here "
            "(`ulimit -v`) is too little; raise the limit, and rerun\n"
        )
    with pytest.raises(ImportError, match="No module"), user_errors():
        raise ImportError("No module named x")
