"""A run in a bucket: trained, scored and used by the commands as one on a disk is."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from bucketing import Weather, new_machine
from photos import PhotoRun, short
from typer.testing import CliRunner

from temi.cache import CacheError
from temi.cli import app as temi_app
from temi.pipeline.config import dump_toml
from temi.pipeline.runs.mirror import Mirror, mirror_of, shown
from temi.pipeline.runs.run_folder import RunFolder

TEMI = Path(sys.executable).with_name("temi")
URL, OTHER = "s3://photos/runs/first", "s3://photos/runs/second"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def weather(s3_server: Weather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:
    with new_machine(s3_server, tmp_path / "one machine", monkeypatch) as fair:
        yield fair


def temi(*words: object, machine: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"XDG_CACHE_HOME": str(machine)} if machine else {})
    return subprocess.run([str(word) for word in (TEMI, *words)], capture_output=True, text=True, env=environment)


def objects(url: str = URL) -> dict[str, bytes]:
    client, prefix = boto3.client("s3"), url.removeprefix("s3://photos/") + "/"
    found = client.list_objects_v2(Bucket="photos", Prefix=prefix).get("Contents", [])
    return {e["Key"][len(prefix) :]: client.get_object(Bucket="photos", Key=e["Key"])["Body"].read() for e in found}


@pytest.mark.long
def test_a_run_in_a_bucket_is_that_of_a_disk(weather: Weather, photo_run: PhotoRun, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(dump_toml(short()))
    trained = temi("train-heads", photo_run.cache, "--out", URL, "--config", tmp_path / "short.toml")
    assert trained.returncode == 0, trained.stderr
    assert f"next: temi evaluate {URL}" in trained.stdout
    assert f"{URL}: " in trained.stderr
    there = objects()
    for name in ("heads.safetensors", "assignments.csv", "config.toml"):
        assert there[name] == (photo_run.run / name).read_bytes(), name
    assert not any(b"fleet-key" in data or b"fleet-secret" in data for data in there.values())
    assert not any(name.startswith("neighbors/") or name.endswith(".lock") for name in there)

    other = tmp_path / "another machine"
    scored = temi("evaluate", URL, "--baselines", "none", machine=other)
    assert "result.json" in objects(), scored.stderr
    predicted = temi("predict", URL, photo_run.cache, machine=other)
    assert predicted.stdout.count("\n") == 46, predicted.stderr


def test_what_cannot_be_is_one_sentence(weather: Weather, photo_run: PhotoRun) -> None:
    app, cache = CliRunner(), str(photo_run.cache)
    refused = app.invoke(temi_app, ["train-heads", cache, "--out", URL, "--overwrite"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "--overwrite deletes nothing in a bucket" in refused.stderr
    missing = app.invoke(temi_app, ["predict", "s3://nothing-of-this-name/run", cache])
    said = "temi: cannot list s3://nothing-of-this-name/run: no such bucket or object; check the URL\n"
    assert (missing.exit_code, missing.stderr) == (2, said)


def test_what_changed_goes_up_the_end_of_a_run_last(weather: Weather) -> None:
    weather.failing = 5
    mirror = Mirror.open(OTHER)
    assert mirror_of(mirror.folder) is mirror
    assert shown(mirror.folder / "report" / "index.html") == f"{OTHER}/report/index.html"
    for name in ("training.json", "heads.safetensors", "neighbors/x.h5", "report/index.html", "a.lock"):
        (mirror.folder / name).parent.mkdir(exist_ok=True)
        (mirror.folder / name).write_text(name)
    assert mirror.push() == 3
    assert mirror.push() == 0
    weather.failing = 0
    written = [line.split()[1].rpartition("second/")[2] for line in weather.seen if line.startswith("PUT")]
    assert written[-1].startswith("training.json")
    boto3.client("s3").put_object(Bucket="photos", Key="runs/second/training.json", Body=b"from elsewhere")
    assert (Mirror.open(OTHER).folder / "training.json").read_text() == "from elsewhere"
    assert set(objects(OTHER)) == {"training.json", "heads.safetensors", "report/index.html"}
    weather.failing = 1
    (mirror.folder / "training.json").write_text("later")
    with pytest.raises(CacheError, match=f"cannot write to {OTHER}: .* after 5 tries"):
        mirror.push()


def test_what_a_killed_command_left_here_goes_up_with_the_next(weather: Weather) -> None:
    """A server of the page, or a run whose end had not gone up yet: the bucket has an older state, or a part."""
    mirror = Mirror.open("s3://photos/runs/third")
    for name in ("training.json", "config.toml", "checkpoints/last"):
        (mirror.folder / name).parent.mkdir(exist_ok=True)
        (mirror.folder / name).write_text(name)
    mirror.push()
    written = [line.split()[1].rpartition("third/")[2] for line in weather.seen if line.startswith("PUT")]
    assert [name.partition("?")[0] for name in written] == ["config.toml", "checkpoints/last", "training.json"]
    (mirror.folder / "corrections.jsonl").write_text("a merge")  # and killed
    (mirror.folder / "training.json").write_text("later")
    again = Mirror.open("s3://photos/runs/third")
    assert (again.folder / "corrections.jsonl").read_text() == "a merge"
    assert (again.folder / "training.json").read_text() == "later"
    assert again.push() == 2
    assert mirror.push() == 0  # another command has sent it


def test_a_run_that_was_deleted_in_the_bucket_does_not_come_back(weather: Weather) -> None:
    url = "s3://photos/runs/fourth"
    mirror = Mirror.open(url)
    (mirror.folder / "config.toml").write_text("of the first run")
    mirror.push()
    boto3.client("s3").delete_object(Bucket="photos", Key="runs/fourth/config.toml")
    again = Mirror.open(url)
    assert not list(again.folder.iterdir())
    assert again.push() == 0
    assert objects(url) == {}


def test_what_changed_here_and_there_is_left_and_told(weather: Weather) -> None:
    url = "s3://photos/runs/fifth"
    mirror = Mirror.open(url)
    for name in ("names.json", "config.toml"):
        (mirror.folder / name).write_text("first")
    mirror.push()
    (mirror.folder / "names.json").write_text("here")
    for name in ("names.json", "config.toml"):
        boto3.client("s3").put_object(Bucket="photos", Key=f"runs/fifth/{name}", Body=b"there")
    with pytest.raises(CacheError, match=f"{url}/names.json was changed in the bucket and on this machine; .* delete"):
        Mirror.open(url)
    assert {path.read_text() for path in mirror.folder.iterdir()} == {"here", "first"}
    with pytest.raises(CacheError, match=f"{url}/names.json was changed in the bucket and on this machine"):
        mirror.push()  # of a command that had begun before
    assert objects(url) == {"names.json": b"there", "config.toml": b"there"}
    shutil.rmtree(mirror.folder)
    assert (Mirror.open(url).folder / "names.json").read_text() == "there"


def test_of_two_machines_that_train_to_one_url_the_second_is_told(
    weather: Weather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://photos/runs/seventh"
    first = Mirror.open(url)
    (first.folder / "config.toml").write_text("clusters = 3")
    with new_machine(weather, tmp_path / "other machine", monkeypatch):
        second = Mirror.open(url)
        (second.folder / "config.toml").write_text("clusters = 4")
        first.push()
        with pytest.raises(CacheError, match=f"{url}/config.toml was changed in the bucket and on this machine"):
            second.push()
        assert objects(url) == {"config.toml": b"clusters = 3"}
        (second.folder / "config.toml").write_text("clusters = 3")
        assert second.push() == 1  # the same of both


def test_a_training_that_is_refused_sends_nothing_of_the_one_that_goes_on(
    weather: Weather, photo_run: PhotoRun, tmp_path: Path
) -> None:
    url = "s3://photos/runs/tenth"
    mirror = Mirror.open(url)
    (mirror.folder / "trial-001").mkdir()
    (mirror.folder / "trial-001/config.toml").write_text("of a trial that is done")
    with RunFolder(mirror.folder / "trial-000").claim():
        (mirror.folder / "trial-000/config.toml").write_text("of a trial that is trained")
        assert mirror.push() == 1
        assert set(objects(url)) == {"trial-001/config.toml"}
    assert mirror.push() == 1

    url = "s3://photos/runs/eleventh"
    mirror = Mirror.open(url)
    run, words = RunFolder(mirror.folder), ["train-heads", str(photo_run.cache), "--out", url]
    (tmp_path / "short.toml").write_text(dump_toml(short()))
    with run.claim():
        run.config.write_text("half of")
        refused = CliRunner().invoke(temi_app, [*words, "--config", str(tmp_path / "short.toml")])
        assert (refused.exit_code, objects(url)) == (2, {})
        assert f"another process is training {url}; wait for it" in refused.stderr
    mirror.push()
    assert objects(url) == {"config.toml": b"half of"}


def test_a_run_in_a_bucket_is_named_by_its_url(weather: Weather, photo_run: PhotoRun) -> None:
    url = "s3://photos/runs/sixth"
    refused = CliRunner().invoke(temi_app, ["predict", url, str(photo_run.cache)])
    assert refused.exit_code == 2
    assert url in refused.stderr
    assert str(Mirror(url).folder) not in refused.stderr


@pytest.mark.slow
def test_corrections_of_a_run_in_a_bucket_are_trained_with(
    weather: Weather, photo_run: PhotoRun, tmp_path: Path
) -> None:
    url, app = "s3://photos/runs/seventh", CliRunner()
    mirror = Mirror(url)
    shutil.copytree(photo_run.run, mirror.folder)
    (tmp_path / "said.jsonl").write_text('{"action": "merge", "clusters": [0, 1]}\n')
    corrected = app.invoke(temi_app, ["correct", url, str(tmp_path / "said.jsonl")])
    assert corrected.exit_code == 0, corrected.output
    assert "corrections.jsonl" in objects(url)
    (tmp_path / "short.toml").write_text(dump_toml(short()))
    for number, told in enumerate((url, f"{url}/corrections.jsonl")):
        words = ["train-heads", str(photo_run.cache), "--out", str(tmp_path / f"run-{number}"), "--corrections", told]
        trained = app.invoke(temi_app, [*words, "--config", str(tmp_path / "short.toml")])
        assert trained.exit_code == 0, trained.output
        assert "corrections: " in trained.stdout
        assert "2 of 3 clusters used" in trained.stdout  # two are merged
    same = [(tmp_path / f"run-{number}/assignments.csv").read_bytes() for number in (0, 1)]
    assert same[0] == same[1]
    missing = app.invoke(temi_app, [*words[:4], "--corrections", "s3://photos/runs/none/corrections.jsonl"])
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
    assert "s3://photos/runs/none/corrections.jsonl does not exist; give" in missing.stderr


@pytest.mark.slow
def test_a_run_that_goes_on_with_one_in_a_bucket_is_resumed_on_another_machine(
    weather: Weather, photo_run: PhotoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, url, app = "s3://photos/runs/eighth", "s3://photos/runs/ninth", CliRunner()
    shutil.copytree(photo_run.run, Mirror(before).folder)
    (tmp_path / "short.toml").write_text(dump_toml(short()))
    words = ["train-heads", str(photo_run.cache), "--out", url, "--from", before]
    words += ["--config", str(tmp_path / "short.toml")]
    trained = app.invoke(temi_app, words)
    assert trained.exit_code == 0, trained.output
    assert json.loads(objects(url)["environment.json"])["continues"] == before

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    finished = app.invoke(temi_app, words)
    assert finished.exit_code == 0, finished.output
    other = app.invoke(temi_app, [*words, "--set", "objective.beta=0.8"])
    assert (other.exit_code, other.stderr.count("\n")) == (2, 1)
    assert other.stderr.startswith(f"temi: {url} was started with objective.beta = ")
    assert other.stderr.endswith("is asked; use another --out\n")  # --overwrite deletes nothing in a bucket
