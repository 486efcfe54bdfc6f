"""A URL that a command cannot write to is one sentence, never a folder of that name."""

import subprocess
import sys
from pathlib import Path

import pytest
from mixtures import mixture, write_cache
from typer.testing import CliRunner

from temi.cli import app

HERE = "is a URL, and this command writes to this machine only; give a path here, and copy there what it wrote\n"


@pytest.mark.parametrize("url", ["s3://bucket/m2", "S3://bucket/m2", "http://host/m2"])
@pytest.mark.parametrize(
    "command",
    ["cache merge a b", "cache join a b", "cache import a", "predict run a", "export run", "search cache", "demo"],
)
def test_a_command_that_writes_here_refuses_a_url(
    command: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command.split(), "--out", url])
    assert (done.exit_code, done.stderr) == (2, f"temi: {url} {HERE}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    ["report run --out s3://bucket/m2", "label-next run --out s3://bucket/m2", "cache export c s3://bucket/m2"],
)
def test_so_does_one_that_writes_a_file_of_one_kind(command: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert (done.exit_code, done.stderr) == (2, f"temi: s3://bucket/m2 {HERE}")


@pytest.mark.parametrize("command", ["embed photos --out", "train-heads cache --out", "evaluate"])
@pytest.mark.parametrize("url", ["S3://bucket/cache", "http://host/cache"])
def test_caches_and_runs_are_in_buckets_and_at_no_other_url(
    command: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command.split(), url])
    assert done.exit_code == 2
    assert f"temi: {url} is no place of caches and runs; give a folder, or a URL of s3://, gs://, " in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["compare", "evaluate", "cache info", "train-heads c --out", "report"])
def test_a_name_that_is_too_long_is_one_sentence(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "c", mixture(rows=60)[0])
    done = CliRunner().invoke(app, [*command.split(), 300 * "d"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "too long" in done.stderr


@pytest.mark.slow
def test_a_folder_that_was_deleted_is_no_place_to_be_in(tmp_path: Path) -> None:
    temi, gone = Path(sys.executable).with_name("temi"), tmp_path / "gone"
    command = f"mkdir {gone} && cd {gone} && rmdir {gone} && {temi} compare {tmp_path}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "temi: the folder that you are in was deleted; go to another one by cd\n",
    )
