"""Images in a bucket are those of the same folder on a disk, whatever the network does."""

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from bucketing import Weather, new_machine
from photos import PhotoRun

from temi.cache import CacheError
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageSource, open_source

TEMI = Path(sys.executable).with_name("temi")
LIMIT = 10**8
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def album(photo_run: PhotoRun, s3_server: Weather) -> Weather:
    """The photos below ``album``, and what else may lie there; the same in tar and Parquet shards."""
    client = boto3.client("s3")
    for path in sorted(photo_run.photos.rglob("*.jpg")):
        client.upload_file(str(path), "photos", f"album/{path.relative_to(photo_run.photos)}")
    for key in ("album/", "album/film.mov", "album/.hidden/1.jpg", "album/@eaDir/2.jpg"):
        client.put_object(Bucket="photos", Key=key, Body=b"")
    for color in ("red", "green"):
        client.put_object(Bucket="photos", Key=f"tars/{color}.tar", Body=tarred(photo_run.photos / color))
        client.put_object(Bucket="photos", Key=f"tables/{color}.parquet", Body=table(photo_run.photos / color))
    return s3_server


@pytest.fixture
def weather(album: Weather, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Weather]:
    with new_machine(album, tmp_path / "kept", monkeypatch) as fair:
        yield fair


def tarred(folder: Path) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.add(folder, ".")
    return sink.getvalue()


def table(folder: Path) -> bytes:
    sink, files = io.BytesIO(), sorted(folder.iterdir())
    columns = {"key": [f"{folder.name} {file.name}" for file in files], "image": [file.read_bytes() for file in files]}
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def source(place: object) -> ImageSource:
    return open_source(str(place), max_pixels=LIMIT)


def test_a_tree_is_the_folder_that_it_would_be(weather: Weather, photo_run: PhotoRun) -> None:
    weather.failing = 6  # every sixth request fails
    there, here = source("s3://photos/album"), source(photo_run.photos)
    assert (there.keys, there.sizes, there.digest) == (here.keys, here.sizes, here.digest)
    assert (there.classes, there.splits, there.labels.tolist()) == (here.classes, here.splits, here.labels.tolist())
    assert {path: why for path, why in there.skipped if path} == {
        "film.mov": ".mov",
        ".hidden/1.jpg": "hidden",
        "@eaDir/2.jpg": "folder of the system",
    }
    there.prefetch(range(3))
    assert [there.data(row) for row in (0, 1, 2, 20)] == [here.data(row) for row in (0, 1, 2, 20)]


def test_a_batch_that_another_thread_asks_for_takes_no_image_from_this_one(
    weather: Weather, photo_run: PhotoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = source("s3://photos/album"), source(photo_run.photos)
    prefetch, others = there.prefetch, [[5, 6], [7]]

    def overtaken(rows: Sequence[int]) -> None:
        prefetch(rows)
        if others:
            prefetch(others.pop())

    monkeypatch.setattr(there, "prefetch", overtaken)
    there.prefetch([0, 1])
    assert [there.data(row) for row in (0, 1, 5)] == [here.data(row) for row in (0, 1, 5)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_of_a_bucket_is_that_of_the_folder(
    weather: Weather, photo_run: PhotoRun, tmp_path: Path, workers: int
) -> None:
    config = EmbedConfig(backbone=str(photo_run.weights), views=0, batch_size=8, workers=workers, device="cpu")
    there = embed("s3://photos/album", tmp_path / "there", config)
    assert there is not None
    assert (tmp_path / "there/shard-00000.h5").read_bytes() == (photo_run.cache / "shard-00000.h5").read_bytes()
    assert sum(line.startswith("GET /photos/album/red/1.jpg") for line in weather.seen) == 1
    weather.failing = 1
    with pytest.raises(CacheError, match=r"^cannot list s3://photos/album: .* after 5 tries"):
        embed("s3://photos/album", tmp_path / "bad", config)


def test_an_image_that_went_is_unreadable_and_a_network_that_fails_is_one_sentence(
    weather: Weather, photo_run: PhotoRun, tmp_path: Path
) -> None:
    images = source("s3://photos/album")
    client = boto3.client("s3")
    client.delete_object(Bucket="photos", Key=f"album/{images.keys[2]}")
    try:
        config = EmbedConfig(backbone=str(photo_run.weights), views=0, batch_size=8, workers=1, device="cpu")
        cache = embed("s3://photos/album", tmp_path / "cache", config)
        assert cache is not None
        assert images.keys[2] not in cache.keys
        images.prefetch(range(4))
        with pytest.raises(Exception, match="no longer in the bucket"):
            images.read(2)
        assert images.read(3).shape[0] == 3
    finally:
        client.upload_file(str(photo_run.photos / images.keys[2]), "photos", f"album/{images.keys[2]}")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("pattern", ["", "/*"])
def test_shards_in_a_bucket_are_those_on_a_disk(weather: Weather, tmp_path: Path, kind: str, pattern: str) -> None:
    place = {"tar": "tars", "parquet": "tables"}[kind]
    weather.seconds = 0.1
    client, folder = boto3.client("s3"), tmp_path / "files"
    folder.mkdir()
    for color in ("red", "green"):
        client.download_file("photos", f"{place}/{color}.{kind}", str(folder / f"{color}.{kind}"))
    weather.seen.clear()
    there, here = source(f"s3://photos/{place}{pattern}"), source(folder)
    assert (there.keys, there.digest) == (here.keys, here.digest)
    assert np.array_equal(there.labels, here.labels)
    assert [there.data(row) for row in range(30)] == [here.data(row) for row in range(30)]
    assert sum(line.startswith(f"GET /photos/{place}/red.{kind}") for line in weather.seen) == 1


def test_what_is_not_there_is_one_sentence(weather: Weather, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"s3://photos/nothing holds no image"):
        source("s3://photos/nothing")
    with pytest.raises(UserError, match=r"no object matches s3://photos/tars/\*.parquet"):
        source("s3://photos/tars/*.parquet")
    with pytest.raises(CacheError, match=r"^cannot list s3://missing/x: no such bucket or object; check the URL$"):
        source("s3://missing/x")
    ran = subprocess.run(
        [TEMI, "embed", "s3://missing/x", "--out", tmp_path, "--set", "embed.backbone=efficientnet-lite0"],
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)


def test_a_name_with_signs_of_patterns_is_a_name(weather: Weather, photo_run: PhotoRun) -> None:
    data, client = (photo_run.photos / "red/1.jpg").read_bytes(), boto3.client("s3")
    names = ["cat[1].jpg", "cat*.jpg", "cat1.jpg"]
    for name in names:
        client.put_object(Bucket="photos", Key=f"odd/{name}", Body=data + name.encode())
    images = source("s3://photos/odd")
    images.prefetch(range(3))
    assert [images.data(row) for row in range(3)] == [data + key.encode() for key in images.keys]
    assert sorted(images.keys) == sorted(names)


def test_another_archive_of_the_same_name_and_size_is_read_anew(weather: Weather, tmp_path: Path) -> None:
    client, url = boto3.client("s3"), "s3://photos/days/day.tar"
    for value in (0, 9):
        (tmp_path / "day").mkdir(exist_ok=True)
        (tmp_path / "day/1.jpg").write_bytes(bytes([value]) * 99)
        client.put_object(Bucket="photos", Key="days/day.tar", Body=tarred(tmp_path / "day"))
        assert source(url).data(0) == bytes([value]) * 99
