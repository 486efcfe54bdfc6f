"""A cache in a bucket: what is there equals what a disk holds, whatever the network does."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
from bucketing import Weather, new_machine
from mixtures import mixture, write_cache
from photos import COLORS, PhotoRun, photo, short

from temi.cache import CacheError, EmbeddingCache, bucket
from temi.cache.bucket import Bucket, bucket_url
from temi.cache.info import summarize
from temi.cache.remote import KEPT_GB, RemoteCache, RemoteWriter, kept_folder, verify_url
from temi.pipeline.commands.cache import cache_prune, cache_verify
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError
from temi.pipeline.runs.train import train_heads

TEMI = Path(sys.executable).with_name("temi")
URL = "s3://photos/cache"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def weather(s3_server: Weather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:
    """Fair weather over an empty bucket, and nothing kept on this machine."""
    with new_machine(s3_server, tmp_path / "kept", monkeypatch) as fair:
        yield fair
    client = boto3.client("s3")
    for entry in client.list_objects_v2(Bucket="photos").get("Contents", []):
        client.delete_object(Bucket="photos", Key=entry["Key"])


def settings(run: PhotoRun) -> EmbedConfig:
    return EmbedConfig(backbone=str(run.weights), views=1, batch_size=8, workers=0, device="cpu", shard_rows=10)


def objects(prefix: str = "cache/") -> dict[str, bytes]:
    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket="photos", Prefix=prefix).get("Contents", [])
    return {
        e["Key"].removeprefix(prefix): client.get_object(Bucket="photos", Key=e["Key"])["Body"].read() for e in found
    }


def lasting(files: dict[str, bytes]) -> dict[str, bytes]:
    """What does not hold times or places."""
    return {
        name: data
        for name, data in files.items()
        if not name.startswith("source") and name[:5] + name[-5:] != "shard.json"
    }


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_cache_and_a_run_from_a_bucket_equal_those_from_a_disk(
    weather: Weather, photo_run: PhotoRun, tmp_path: Path
) -> None:
    weather.failing = 7  # every seventh request fails
    there = embed(str(photo_run.photos), Path(URL), settings(photo_run))
    here = embed(str(photo_run.photos), tmp_path / "cache", settings(photo_run))
    assert there is not None
    assert here is not None
    train_heads(EmbeddingCache.open(URL), short("heads.count=2"), tmp_path / "from bucket")
    weather.failing = 0
    assert lasting(objects()) == lasting(on_disk(tmp_path / "cache"))
    assert there.digest == here.digest
    train_heads(here, short("heads.count=2"), tmp_path / "from disk")
    for name in ("heads.safetensors", "assignments.csv"):
        assert (tmp_path / "from bucket" / name).read_bytes() == (tmp_path / "from disk" / name).read_bytes()
    environment = json.loads((tmp_path / "from bucket/environment.json").read_text())
    assert environment["cache"]["folder"] == URL
    written = [*on_disk(tmp_path / "from bucket").values(), *objects().values()]
    assert not any(b"fleet-key" in data or b"fleet-secret" in data for data in written)


def test_a_shard_is_one_request_and_is_read_once(weather: Weather, photo_run: PhotoRun) -> None:
    cache = embed(str(photo_run.photos), Path(URL), settings(photo_run))
    assert cache is not None
    weather.seen.clear()  # the server may still write down the last PUT
    opened = EmbeddingCache.open(URL)
    assert not shards_fetched(weather)
    first = opened.embedding()
    again = EmbeddingCache.open(URL).embedding()
    assert np.array_equal(first, again)
    assert shards_fetched(weather) == [f"GET /photos/cache/shard-{index:05d}.h5" for index in range(5)]


@pytest.mark.long
def test_two_readers_on_one_machine_fetch_a_shard_once(weather: Weather, photo_run: PhotoRun) -> None:
    assert embed(str(photo_run.photos), Path(URL), settings(photo_run)) is not None
    shutil.rmtree(kept_folder())
    weather.seen.clear()
    weather.seconds = 0.05
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: EmbeddingCache.open(URL).embedding(), range(2))
    assert np.array_equal(one, other)
    assert len(shards_fetched(weather)) == 5


def test_what_another_reader_is_writing_stays(weather: Weather, photo_run: PhotoRun) -> None:
    assert embed(str(photo_run.photos), Path(URL), settings(photo_run)) is not None
    shutil.rmtree(kept_folder())
    folder = EmbeddingCache.open(URL).folder
    for name in ("shard-00000.h5.part", "shard-00078.json.part", "shard-00077.json"):
        (folder / name).write_bytes(b"half")
    EmbeddingCache.open(URL)
    left = {path.name for path in folder.iterdir()}
    assert {"shard-00000.h5.part", "shard-00078.json.part"} <= left
    assert "shard-00077.json" not in left  # of a cache that was there before


@pytest.mark.long
def test_info_verify_and_prune_of_a_cache_in_a_bucket(
    weather: Weather, photo_run: PhotoRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(str(photo_run.photos), Path(URL), settings(photo_run)) is not None
    summary = summarize(Path(URL))
    assert (summary.folder, summary.rows, summary.shards_done, summary.unreadable_images) == (URL, 45, 5, 1)
    cache_verify(Path(URL))
    assert re.search(rf"{URL}: 45 rows, every byte as written, digest [0-9a-f]{{32}}", capsys.readouterr().out)
    train_heads(EmbeddingCache.open(URL), short("heads.count=2"), tmp_path / "run")
    assert {kept.name for kept in summarize(Path(URL)).kept} >= {"copies", "neighbors"}
    cache_prune(Path(URL))
    assert f"{URL}: " in capsys.readouterr().out
    assert summarize(Path(URL)).kept == []
    client, data = boto3.client("s3"), objects()["shard-00003.h5"]
    client.put_object(Bucket="photos", Key="cache/shard-00003.h5", Body=data[:-1] + b"?")
    client.put_object(Bucket="photos", Key="cache/shard-00009.h5", Body=b"")
    client.delete_object(Bucket="photos", Key="cache/shard-00001.json")
    assert verify_url(URL) == [
        f"{URL}/shard-00001.h5 is not done (it has no sidecar); rerun the command that made the cache",
        f"{URL}/shard-00003.h5 is damaged: the bytes of views are not those that were written; "
        "delete shard-00003.json and rerun the command that made the cache to make this shard anew",
        f"{URL}/shard-00009.h5 is no part of this cache's plan; delete it",
    ]
    with pytest.raises(CacheError, match="is not an embedding cache"):
        summarize(Path("s3://photos/nothing"))


def shards_fetched(weather: Weather) -> list[str]:
    """In the order of their numbers: threads fetch several at once."""
    return sorted(line.split("?")[0] for line in weather.seen if line.startswith("GET") and ".h5" in line)


def test_what_is_kept_here_is_bounded(weather: Weather, photo_run: PhotoRun, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = embed(str(photo_run.photos), Path(URL), settings(photo_run))
    assert cache is not None
    size = cache._sidecars[0].size
    monkeypatch.setenv(KEPT_GB, str(2.5 * size / 1e9))
    with monkeypatch.context() as patch:
        patch.setattr("temi.cache.remote.IN_USE", 0.0)
        one_by_one = np.concatenate([cache.embedding(s.start, s.stop) for s in cache.manifest.shards])
        assert len(list(kept_folder().glob("*/*.h5"))) == 2
    assert np.array_equal(one_by_one, EmbeddingCache.open(URL).embedding())


@pytest.mark.long
def test_a_killed_upload_is_finished_by_the_same_command(
    weather: Weather, photo_run: PhotoRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(self: RemoteWriter, name: str) -> None:
        if name == "shard-00002.json":
            raise KeyboardInterrupt
        send(self, name)

    send = RemoteWriter._send
    with monkeypatch.context() as patch:
        patch.setattr(RemoteWriter, "_send", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(str(photo_run.photos), Path(URL), settings(photo_run))
    assert "shard-00002.h5" in objects()
    with pytest.raises(CacheError, match=r"unfinished: 3 of 5 shards are missing, from shard-00002 on"):
        EmbeddingCache.open(URL)
    weather.seen.clear()
    embed(str(photo_run.photos), Path(URL), settings(photo_run))
    assert sum("PUT" in line and ".h5" in line for line in weather.seen) == 3  # finished shards are never redone
    embed(str(photo_run.photos), tmp_path / "whole", settings(photo_run))
    assert lasting(objects()) == lasting(on_disk(tmp_path / "whole"))


@pytest.mark.long
def test_a_cache_in_a_bucket_grows(weather: Weather, photo_run: PhotoRun, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(photo_run.photos, photos)
    before = embed(str(photos), Path(URL), settings(photo_run))
    (photos / "red/new.jpg").write_bytes(photo(COLORS["red"], np.random.default_rng(0)))
    grown = embed(str(photos), Path(URL), settings(photo_run))
    assert before is not None
    assert grown is not None
    assert grown.keys == [*before.keys, "red/new.jpg"]
    weather.seen.clear()
    assert EmbeddingCache.open_as(URL, before.digest) is not None
    assert sum("list-type=2" in line for line in weather.seen) == 1  # two generations are looked at
    with pytest.raises(CacheError, match=f"{URL} was made with other settings"):
        embed(str(photos), Path(URL), settings(photo_run).model_copy(update={"seed": 5}))
    with pytest.raises(UserError, match="deletes nothing in a bucket"):
        embed(str(photos), Path(URL), settings(photo_run), overwrite=True)


@pytest.mark.long
def test_slow_answers_and_a_damaged_object(weather: Weather, photo_run: PhotoRun) -> None:
    embed(str(photo_run.photos), Path(URL), settings(photo_run))
    shutil.rmtree(kept_folder())
    weather.seconds = 0.3
    cache = EmbeddingCache.open(URL)
    assert cache.embedding(0, 10).shape == (10, 16)
    data = bytearray(objects()["shard-00001.h5"])
    data[-1] ^= 1
    boto3.client("s3").put_object(Bucket="photos", Key="cache/shard-00001.h5", Body=bytes(data))
    with pytest.raises(CacheError, match=f"{URL}/shard-00001.h5 is damaged"):
        cache.embedding(10, 20)


@pytest.mark.long
def test_what_does_not_pass_is_one_sentence(weather: Weather, photo_run: PhotoRun) -> None:
    with pytest.raises(CacheError, match="no such bucket or object"):
        Bucket("s3://nothing-of-this-name/cache").sizes()
    with pytest.raises(CacheError, match="is not an embedding cache"):
        EmbeddingCache.open(URL)
    weather.failing = 1
    with pytest.raises(CacheError, match=f"cannot list {URL}: .* after 5 tries; check the network"):
        Bucket(URL).sizes()
    with pytest.raises(CacheError, match="credentials in it"):
        bucket_url("s3://key:secret@photos/cache")
    weather.failing = 0
    ran = subprocess.run(
        [TEMI, "train-heads", "s3://missing/cache", "--out", kept_folder() / "run"], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "temi: cannot list s3://missing/cache: no such bucket" in ran.stderr


def test_a_url_that_was_made_a_path_of_is_still_one() -> None:
    assert bucket_url(Path("s3://bucket/some/cache/")) == "s3://bucket/some/cache"
    assert bucket_url("s3://bucket/cache") == "s3://bucket/cache"
    assert bucket_url("photos/s3") is None
    assert isinstance(RemoteCache.place, property)


@pytest.mark.long
def test_a_cache_that_was_made_anew_is_not_taken_for_the_one_before(weather: Weather, photo_run: PhotoRun) -> None:
    """Its shards have the size of those that are kept here."""
    assert embed(str(photo_run.photos), Path(URL), settings(photo_run)) is not None
    before = EmbeddingCache.open(URL).embedding()
    client = boto3.client("s3")
    for name in objects():
        client.delete_object(Bucket="photos", Key=f"cache/{name}")
    mean = settings(photo_run).model_copy(update={"pooling": "mean"})
    made = embed(str(photo_run.photos), Path(URL), mean)
    assert made is not None
    now = EmbeddingCache.open(URL).embedding()
    assert (before != now).any()


@pytest.mark.parametrize("looked_at_between", [False, True])
def test_a_shard_of_another_cache_is_not_taken_for_that_of_its_size(
    weather: Weather, tmp_path: Path, looked_at_between: bool
) -> None:
    """Also where somebody looked while the bucket was empty, so that the sidecars of the first are gone from here."""
    for seed in range(2):
        rows = mixture(rows=30, seed=seed)[0]
        for path in write_cache(tmp_path / f"cache {seed}", rows, shard_rows=10).folder.iterdir():
            Bucket(URL).write(path.name, path.read_bytes())
        assert np.array_equal(EmbeddingCache.open(URL).embedding(), rows)
        for name in objects():
            boto3.client("s3").delete_object(Bucket="photos", Key=f"cache/{name}")
        if looked_at_between:
            with pytest.raises(CacheError, match="is not an embedding cache"):
                EmbeddingCache.open(URL)


def test_settings_that_no_other_try_mends_are_one_sentence(
    weather: Weather, photo_run: PhotoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CacheError, match=r"cannot list s3://Bad_Bucket!/cache: .*; check the URL"):
        EmbeddingCache.open("s3://Bad_Bucket!/cache")
    assert embed(str(photo_run.photos), Path(URL), settings(photo_run)) is not None
    monkeypatch.setenv("TEMI_BUCKET_CACHE_GB", "lots")
    with pytest.raises(CacheError, match="TEMI_BUCKET_CACHE_GB=lots is no number"):
        EmbeddingCache.open(URL).embedding()


def test_who_waits_for_a_bucket_is_told(
    weather: Weather, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Bucket(URL).write("quick", b"x")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(bucket, "PATIENCE", 0.2)
    weather.seconds = 0.6
    assert Bucket(URL).read(["quick"]) == {"quick": b"x"}
    told = "still waiting to read s3://photos/cache; the bucket has not answered in 0 s\n"
    assert capsys.readouterr().err == told
