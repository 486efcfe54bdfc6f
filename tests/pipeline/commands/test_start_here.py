"""The commands of a first visit: doctor says what is missing, demo is the demo, help reads like a page."""

import importlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from temi import cli
from temi.pipeline.commands import first
from temi.pipeline.commands import machine as doctor


def test_the_demo_takes_each_step_once_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    for name in ("embed", "train_heads", "evaluate", "report"):
        monkeypatch.setattr(first, name, lambda *args, name=name, **_: calls.append((name, args[0])))
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    run = tmp_path / "run"
    steps = [("embed", "digits"), ("train_heads", tmp_path / "cache"), ("evaluate", run), ("report", run)]
    assert calls == steps


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_hub", lambda: doctor.Finding("model hub", "out of reach", "copy a model here"))


@pytest.mark.usefixtures("no_hub")
def test_doctor_names_what_it_found(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["doctor", str(tmp_path / "not there yet")])
    assert result.exit_code == 0, result.output
    for words in (
        "python: 3.",
        "device: ",
        "cores",
        "products by ",
        "GB free in",
        "neighbor search: faiss",
        "copy a model here",
    ):
        assert words in result.stdout
    assert "next: temi demo" in result.stdout


@pytest.mark.usefixtures("no_hub")
def test_doctor_says_how_to_install_and_fails_where_nothing_can_work(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_faiss(name: str, package: str | None = None) -> object:
        if name in ("faiss", "onnxscript"):
            raise ImportError(f"No module named {name!r}")
        return real(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", without_faiss)
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "NO  neighbor search: faiss cannot be imported" in result.stdout
    assert "pip install 'temi-clustering[cpu]'" in result.stdout
    assert "-   ONNX export" in result.stdout


@pytest.mark.usefixtures("no_hub")
def test_doctor_says_whether_all_baselines_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name if name not in ("evoc", "umap") else None)
    finding = doctor._baselines()
    assert (finding.found, finding.advice) == (
        "evoc, umap not installed",
        "pip install 'temi-clustering[baselines]'",
    )
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name)
    assert doctor._baselines().fine


def test_doctor_takes_any_trouble_with_the_hub_for_no(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable() -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    finding = doctor._hub(unreachable)
    assert not finding.fine
    assert "ConnectionError" in finding.found
    assert doctor._hub(lambda: None).fine


@pytest.mark.parametrize("command", ["embed", "train-heads", "evaluate", "report", "predict", "export", "names"])
def test_every_command_and_option_explains_itself(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "160", "TERM": "dumb"})
    assert result.exit_code == 0
    overview = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "160", "TERM": "dumb"})
    assert f" {command} " in overview.stdout
