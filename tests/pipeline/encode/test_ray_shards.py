"""`temi embed --on ray` on a cluster of two node processes: the bytes of one process, also when a node is killed."""

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from photos import PhotoRun
from ray_nodes import kill_node, ray_nodes

from temi.cache import EmbeddingCache
from temi.pipeline import ray_cluster
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode import ray_shards
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError
from temi.pipeline.images import open_source
from temi.pipeline.ray_cluster import RETRIES, Size, Workers

TEMI = Path(sys.executable).with_name("temi")

# The encoder of the photos, slow enough that a node can be killed in the middle; by torch, as OpenVINO would take the
# arithmetic and leave the sleep.
SLOW = """
import time
from dataclasses import replace
from temi.pipeline.encode.backbones import register_backbone
from temi.pipeline.encode.hugging_face import hugging_face

@register_backbone("slow")
def slow(config, device, precision):
    backbone = hugging_face(config.model_copy(update={{"backbone": {weights!r}}}), device, precision)
    encode = backbone.encode
    return replace(backbone, name="slow", encode=lambda pixels: time.sleep({seconds}) or encode(pixels))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, ray_nodes(patch) as nodes:
        yield nodes


def start(photos: Path, out: object, tmp_path: Path, run: PhotoRun, *more: object, seconds: float | str = 0.0) -> Any:
    """`temi embed` with two photos per shard."""
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW.format(weights=str(run.weights), seconds=seconds))
    settings = ["backbone=slow", "views=1", "shard_rows=2", "workers=0", "device=cpu", "engine=torch"]
    options = [word for setting in settings for word in ("--set", f"embed.{setting}")]
    command = [TEMI, "embed", photos, "--out", out, "--plugin", plugin, *options, *more]
    return subprocess.Popen(list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: Any) -> str:
    """What the process said; it must end well."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return str(said)


def lasting(folder: Path) -> dict[str, bytes]:
    """Files without times or places."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


@pytest.mark.long
def test_an_error_in_a_plugin_on_a_node_says_where(cluster: Any, photo_run: PhotoRun, tmp_path: Path) -> None:
    process = start(
        photo_run.photos,
        tmp_path / "cache",
        tmp_path,
        photo_run,
        "--on",
        f"ray:{cluster.address}",
        seconds="{}['seconds']",
    )
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert re.search(r"temi: the plugin .*/slow.py failed at line 11: KeyError: 'seconds'; correct the file\n", said)


@pytest.mark.long
def test_two_nodes_make_the_bytes_of_one_process_when_one_of_them_is_killed(
    cluster: Any, photo_run: PhotoRun, tmp_path: Path
) -> None:
    on, shards = ("--on", f"ray:{cluster.address}"), tmp_path / "two"
    alone = start(photo_run.photos, tmp_path / "one", tmp_path, photo_run, seconds=0.3)
    killed = start(photo_run.photos, shards, tmp_path, photo_run, *on, seconds=0.3)
    wait_for(lambda: len(list(shards.glob("shard-*.json"))) >= 4, killed)
    kill_node(cluster)
    made = {path.name: path.stat().st_mtime_ns for path in shards.glob("shard-*.json")}
    assert 4 <= len(made) < 20
    said = finish(killed)
    finish(alone)
    assert "is lost: what was being made there is made again elsewhere" in said
    assert "embed: 45/45 img" in said
    assert ", 1 unreadable" in said
    assert "Traceback" not in said
    assert lasting(tmp_path / "two") == lasting(tmp_path / "one")
    assert made.items() <= {path.name: path.stat().st_mtime_ns for path in shards.glob("shard-*.json")}.items()
    assert EmbeddingCache.open(shards).verify() == []


@pytest.mark.long
def test_the_loss_of_the_cluster_is_a_sentence_and_another_goes_on(
    photo_run: PhotoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "cache"
    with ray_nodes(monkeypatch, count=1) as own:
        lost = start(photo_run.photos, shards, tmp_path, photo_run, "--on", f"ray:{own.address}", seconds=0.3)
        wait_for(lambda: len(list(shards.glob("shard-*.json"))) >= 2, lost)
        own.head_node.all_processes["raylet"][0].process.kill()
        _, said = lost.communicate(timeout=300)
    assert lost.returncode == 2, said
    assert "temi: the Ray node of this machine is lost; start the cluster again, and run the same command" in said
    assert "Traceback" not in said
    made = {path.name: path.stat().st_mtime_ns for path in shards.glob("shard-*.json")}
    assert "embed: " in finish(start(photo_run.photos, shards, tmp_path, photo_run, seconds=0.3))
    assert made.items() <= {path.name: path.stat().st_mtime_ns for path in shards.glob("shard-*.json")}.items()
    assert EmbeddingCache.open(shards).verify() == []


WATCH = """
import socket
from contextlib import ExitStack
from temi.pipeline import ray_cluster

ray_cluster.LOOK, ray_cluster.GRACE = 0.1, 0.5
own, node = socket.socketpair()
over, ending = socket.socketpair()
{happens}
ray_cluster._watch(ExitStack(), [own], "127.0.0.1:1", over)
"""


@pytest.mark.parametrize(
    ("happens", "status", "said"),
    [
        ("node.close()", 2, r"temi: the Ray node of this machine is lost; start the cluster again, .*\n"),
        (
            "",
            2,
            r"the head of the Ray cluster, 127.0.0.1:1, does not answer; waiting up to .*\n"
            r"temi: the head of the Ray cluster, 127.0.0.1:1, is lost; start the cluster again, .*\n",
        ),
        ("ending.close(); node.close()", 0, ""),
    ],
)
def test_what_of_a_cluster_is_lost_is_the_last_word(happens: str, status: int, said: str) -> None:
    script = WATCH.format(happens=happens)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stderr
    assert re.fullmatch(said, done.stderr), done.stderr


def test_a_worker_for_each_gpu_or_for_so_many_cores_as_the_smallest_node_has() -> None:
    def node(cpus: int, gpus: int = 0, alive: bool = True) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}

    for nodes, gpus, size, places in [
        ([node(8), node(32), node(0), node(64, alive=False)], True, Size(8, 0), 5),
        ([node(8), node(32, 4), node(12, 1)], True, Size(8, 1), 5),
        ([node(32, 4)], False, Size(32, 0), 1),
        ([node(0)], True, Size(1, 0), 0),
    ]:
        assert (Size.of(nodes, gpus=gpus), size.places(nodes)) == (size, places)


@pytest.mark.parametrize(("losses", "told"), [(1, True), (RETRIES + 1, False)])
def test_a_piece_whose_worker_cannot_be_reached_is_begun_again_and_tells_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, losses: int, told: bool
) -> None:
    """Between the end of a node and Ray's notice of it a call fails once, and is not repeated by Ray."""
    errors = pytest.importorskip("ray.exceptions", reason="ray is not installed: pip install ray")
    failing = iter([True] * losses)

    def answers(name: str) -> Iterator[Any]:
        yield f"{name}1"
        yield (
            errors.ActorUnavailableError("connection refused", None) if name == "a" and next(failing, 0) else f"{name}2"
        )
        yield f"{name}3"

    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def worker() -> Any:
        remote = SimpleNamespace(remote=answers)
        return SimpleNamespace(make=SimpleNamespace(options=lambda **_: remote))

    workers = Workers.__new__(Workers)
    workers._ray = SimpleNamespace(
        wait=lambda streams, **_: (streams, []), get=get, kill=lambda worker: None, exceptions=errors
    )
    workers._all, workers._looked = [worker(), worker()], 0.0

    def more(wanted: int) -> list[Any]:
        new = [worker() for _ in range(wanted)]
        workers._all += new
        return new

    monkeypatch.setattr(ray_cluster, "LOOK", 0.01)
    monkeypatch.setattr(workers, "_more", more)
    dealt = workers.deal("make", {"a": "a", "b": "b"})
    if told:
        assert sorted(answer for _, answer in dealt) == ["a1", "a2", "a3", "b1", "b2", "b3"]
    else:
        with pytest.raises(UserError, match="a was given up after its worker died 4 times"):
            list(dealt)


@pytest.mark.parametrize(
    ("on", "sentence"),
    [
        ("slurm", "--on slurm is not known; give --on ray"),
        ("ray:", "--on ray: is not known; give --on ray, or --on ray:HOST:PORT"),
        ("ray:127.0.0.1:1", r"no Ray cluster at 127.0.0.1:1 \(Connection refused\); start one"),
    ],
)
def test_a_cluster_that_is_none_is_one_sentence(photo_run: PhotoRun, tmp_path: Path, on: str, sentence: str) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install ray")
    with pytest.raises(UserError, match=sentence):
        embed(str(photo_run.photos), tmp_path / "cache", EmbedConfig(), on=on)


def test_a_cluster_that_fails_without_a_word_is_told_by_the_kind_of_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install ray")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(UserError, match=r"no Ray cluster at .* \(RuntimeError\); start one"),
        ray_cluster.ray_cluster("ray"),
    ):
        pass


def test_where_something_else_listens_is_told_at_once(photo_run: PhotoRun, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install ray")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"no Ray cluster at 127.0.0.1:\d+ \(what listens there is not Ray\)"):
            embed(str(photo_run.photos), tmp_path / "cache", EmbedConfig(), on=f"ray:127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed: pip install ray")
def test_a_node_that_sees_something_else_is_one_sentence(photo_run: PhotoRun, tmp_path: Path) -> None:
    manifest = EmbeddingCache.open(photo_run.cache).manifest
    images = open_source(str(photo_run.photos), max_pixels=10**9)
    with pytest.raises(UserError, match=r"does not see .*; give a folder that all nodes share"):
        next(ray_shards.Plan(images, manifest, str(tmp_path), None, 0).writer().gen)
    images.folder = tmp_path
    with pytest.raises(UserError, match=r"cannot read blue/0.jpg \(cannot be opened: No such file"):
        ray_shards._check_images(images, 0)


def wait_for(condition: Any, process: Any) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
