"""Folders and lists as people have them: nothing is left out without a word, and one bad entry never decides."""

import csv
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from temi.cache.files import csv_bytes
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageNote, ImageSource, UnreadableImage, open_source
from temi.pipeline.images.decode import decode_image
from temi.pipeline.images.left_out import left_out
from temi.pipeline.images.listing import printable, split_name

LIMIT = 10**6
RANDOM = np.random.default_rng(0)
NAMES = ["plain.jpg", "next\x85line.jpg", "line\u2028separator.jpg", "two\nlines.jpg", "carriage\rreturn.jpg", "a,b.jpg", 'q"q.jpg']  # fmt: skip  # noqa: E501


def picture(path: Path, size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 255, (size, size, 3), np.uint8)).save(path)
    return path


def open_(source: object, **options: object) -> ImageSource:
    return open_source(str(source), max_pixels=LIMIT, **options)


def reasons(images: ImageSource) -> dict[str, str]:
    return dict(images.skipped)


# ---- patterns


@pytest.mark.parametrize("name", ["Holiday [2019]", "what?", "all*"])
def test_an_existing_path_is_no_pattern(tmp_path: Path, name: str) -> None:
    for number in range(3):
        picture(tmp_path / name / f"{number}.jpg")
    assert len(open_(tmp_path / name).keys) == 3


def test_an_existing_archive_is_no_pattern(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    for name in ("set [v2].tar", "set v.tar"):
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(image, f"{name[4]}.png")
    assert open_(tmp_path / "set [v2].tar").keys == ["[.png"]
    with pytest.raises(UserError, match="no file matches"):
        open_(tmp_path / "set [w].tar")


# ---- links


def test_links_to_files_are_images_wherever_they_lead(tmp_path: Path) -> None:
    for number in range(9):
        picture(tmp_path / f"originals/{number}.jpg")
    (tmp_path / "farm/a").mkdir(parents=True)
    for number in range(9):
        (tmp_path / f"farm/a/link{number}.jpg").symlink_to(f"../../originals/{number}.jpg")
    picture(tmp_path / "farm/b/real.jpg")
    images = open_(tmp_path / "farm")
    assert len(images.keys) == 10
    assert images.remarks == [f"links that lead out of {tmp_path / 'farm'} were followed: 9"]
    assert images.classes == ("a", "b")


def test_a_linked_class_folder_is_followed(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"originals/{number}.jpg")
    picture(tmp_path / "classes/own/0.jpg")
    (tmp_path / "classes/linked").symlink_to("../originals")
    images = open_(tmp_path / "classes")
    assert images.classes == ("linked", "own")
    assert images.labels.tolist() == [0, 0, 0, 1]
    assert images.remarks


def test_links_that_lead_nowhere_or_round_are_named_and_passed_over(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "loop" / name)
    for name, target in {
        "self.jpg": "self.jpg",
        "gone.jpg": "nothing",
        "up": "..",
        "here": ".",
        "up2": "../..",
    }.items():
        (tmp_path / "loop" / name).symlink_to(target)
    images = open_(tmp_path / "loop")
    assert images.keys == ["a.jpg", "b.jpg"]
    assert reasons(images) == {
        "self.jpg": "link in a circle",
        "gone.jpg": "link to nothing",
        "up": "link to a folder around this one",
        "up2": "link to a folder around this one",
        "here": "link to a folder that is read anyway",
    }
    assert "2 links to a folder around this one" in left_out(images.skipped)
    assert "1 link in a circle [self.jpg]" in left_out(images.skipped)


def test_a_folder_without_permission_is_named_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "private").mkdir()
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if str(path).endswith("private"):  # root may list every folder
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("temi.pipeline.images.folder.os.scandir", refuse)
    images = open_(tmp_path)
    assert images.keys == ["a.jpg"]
    assert reasons(images) == {"private": "folder that cannot be listed (Permission denied)"}
    monkeypatch.setattr("temi.pipeline.images.folder.os.scandir", lambda path: refuse(Path("private")))
    with pytest.raises(UserError, match="cannot be listed"):
        open_(tmp_path)


# ---- formats


def test_every_file_is_read_or_named(tmp_path: Path) -> None:
    for number, suffix in enumerate(("jpg", "png", "avif", "ppm", "tga", "jp2", "ico")):
        picture(tmp_path / f"{number}.{suffix}")
    (tmp_path / "8.mov").write_bytes(bytes(100))
    picture(tmp_path / "@eaDir/9.jpg")
    picture(tmp_path / "__MACOSX/9.jpg")
    picture(tmp_path / ".thumbnails/9.jpg")
    images = open_(tmp_path)
    assert images.keys == ["0.jpg", "1.png", "2.avif", "3.ppm", "5.jp2"]
    assert all(images.read(row).shape == (3, 16, 16) for row in range(5))
    assert reasons(images) == {
        "4.tga": ".tga",
        "6.ico": ".ico",
        "8.mov": ".mov",
        "@eaDir": "folder of the system",
        "__MACOSX": "folder of the system",
        ".thumbnails": "hidden",
    }


def test_heic_is_read_by_an_extra_and_named_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.open(picture(tmp_path / "a.png"))).save(tmp_path / "b.heic")
    images = open_(tmp_path)
    assert images.keys == ["a.png", "b.heic"]
    assert images.read(1).shape == (3, 16, 16)
    plain = frozenset({".png", ".jpg"})
    monkeypatch.setattr("temi.pipeline.images.folder.SUFFIXES", plain)
    assert reasons(open_(tmp_path)) == {"b.heic": ".heic (pip install 'temi-clustering[heif]')"}
    monkeypatch.setattr("temi.pipeline.images.decode.READABLE", {"PNG": (".png",)})
    monkeypatch.setattr("temi.pipeline.images.decode.FORMATS", ("PNG",))
    with pytest.raises(UnreadableImage, match=r"a HEIC image; pip install 'temi-clustering\[heif\]'"):
        decode_image((tmp_path / "b.heic").read_bytes(), LIMIT)


@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_last_bytes_is_read_with_a_note(tmp_path: Path, cut: int) -> None:
    for size in (16, 61):
        data = picture(tmp_path / "a.jpg", size).read_bytes()
        with pytest.warns(ImageNote, match="without its last bytes"):
            pixels = decode_image(data[:-cut], LIMIT)
        assert pixels.equal(decode_image(data, LIMIT))
        for more in (20, 200):
            with pytest.raises(UnreadableImage, match="truncated"):
                decode_image(data[:-more], LIMIT)


RAMP = np.tile(np.linspace(0, 1, 64), (64, 1)) * np.linspace(0.2, 1, 64)[:, None]


@pytest.mark.parametrize(("bits", "note"), [(10, "10 of 16"), (12, "12 of 16"), (14, "14 of 16"), (0, "real numbers")])
def test_gray_of_any_depth_looks_like_8_bits(tmp_path: Path, bits: int, note: str) -> None:
    values = ((2**bits - 1) * RAMP).astype(np.uint16) if bits else RAMP.astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.warns(ImageNote, match=note):
        pixels = open_(tmp_path).read(0).numpy().astype(int)
    assert np.abs(pixels - np.floor(255 * RAMP)).max() <= 1


def test_the_largest_sample_value_of_a_tiff_decides(tmp_path: Path) -> None:
    dark = (1000 * RAMP).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "a.tif", tiffinfo={281: 4095})
    assert np.array_equal(open_(tmp_path).read(0).numpy()[0], dark >> 4)


# ---- splits


def test_usual_spellings_of_splits_are_known(tmp_path: Path) -> None:
    for split in ("Training", "Testing", "validation_set"):
        for name in ("cat", "dog"):
            picture(tmp_path / split / name / "1.jpg")
    images = open_(tmp_path)
    assert images.splits == {"test": (0, 2), "train": (2, 4), "validation": (4, 6)}
    assert images.classes == ("cat", "dog")
    assert [split_name(name) for name in ("train2017", "TEST", "valid", "trainer", "best", "test-set")] == [
        "train", "test", "val", None, None, "test",
    ]  # fmt: skip


# ---- names that are not UTF-8


def test_the_bytes_of_a_name_stay(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"caf\\xe9.png", b"\xff\xfe.png"):
        os.rename(picture(tmp_path / "x.png"), os.fsencode(tmp_path) + b"/" + name)
    images = open_(tmp_path)
    assert sorted(images.keys) == ["\\xff\\xfe.png", "caf\\\\xe9.png", "caf\\xe9.png"]
    assert {os.path.basename(os.fsencode(images.path(row))) for row in range(3)} == {
        b"caf\xe9.png", b"caf\\xe9.png", b"\xff\xfe.png",
    }  # fmt: skip
    alone = open_(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    assert alone.keys == ["caf\\xe9.png"]
    assert alone.read(0).shape == (3, 16, 16)


def test_an_archive_may_hold_such_a_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(picture(tmp_path / "x.png"), "caf\udce9.png")
        archive.add(picture(tmp_path / "x.tga"), "b.tga")
    images = open_(tmp_path / "a.tar")
    assert images.keys == ["caf\\xe9.png"]
    assert reasons(images) == {"b.tga": ".tga"}


@given(st.lists(st.binary(min_size=1, max_size=6).filter(lambda name: not {0, 47} & set(name)), unique=True))
def test_printable_names_are_distinct(names: list[bytes]) -> None:
    keys = printable([os.fsdecode(name) for name in names])
    assert len(set(keys)) == len(names)
    assert all(key.encode() for key in keys)


# ---- lists and tables


def write_lists(folder: Path) -> None:
    for name in NAMES:
        picture(folder / name)
    with (folder / "all.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([name, "-1" if i == 0 else f"class{i % 2}"] for i, name in enumerate(NAMES))
    plain = [name for name in NAMES if not {"\n", "\r"} & set(name)]
    (folder / "some.txt").write_text("\n".join(plain) + "\n", encoding="utf-8", newline="")


def test_every_name_of_a_list_stays_one_name(tmp_path: Path) -> None:
    write_lists(tmp_path)
    table, text = open_(tmp_path / "all.csv"), open_(tmp_path / "some.txt")
    assert table.keys == NAMES
    assert text.keys == [name for name in NAMES if not {"\n", "\r"} & set(name)]
    for images in (table, text):
        assert all(images.read(row).shape == (3, 16, 16) for row in range(len(images.keys)))
    assert table.classes == ("class0", "class1")
    assert table.labels.tolist() == [-1, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_a_csv_may_use_another_separator(tmp_path: Path, separator: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text(f"label{separator}path\r\ncat{separator}a.png\r\n", newline="")
    images = open_(tmp_path / "l.csv")
    assert (images.keys, images.classes) == (["a.png"], ("cat",))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.lists(TEXT, min_size=1))
@settings(deadline=None)
def test_a_table_reads_back_as_it_was(names: list[str]) -> None:
    data = csv_bytes([("key", "cluster"), *((name, 3) for name in names)])
    assert [row[0] for row in csv.reader(io.StringIO(data.decode(), newline=""))][1:] == names
    found = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    assert found["key"].tolist() == names


@given(st.lists(TEXT, min_size=1))
@settings(deadline=None, max_examples=30)
def test_duckdb_reads_a_table_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_bytes(csv_bytes([("key", "cluster"), *((name, 3) for name in names)]))
    rows = duckdb.sql(
        f"SELECT key FROM read_csv('{path}', header=true, delim=',', quote='\"', escape='\"', all_varchar=true)"
    )
    assert [row[0] for row in rows.fetchall()] == names


def test_what_temi_made_is_passed_by_as_one_entry_unless_images_may_be_in_it(tmp_path: Path) -> None:
    def made(folder: str, *names: str) -> None:
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"")

    picture(tmp_path / "a.png")
    made("cache", "manifest.json", "shard-00000.h5", "shard-00000.json", "neighbors/k.npy")
    made("runs/1", "config.toml", "environment.json", "checkpoints/latest.safetensors", "training.json")
    made("project", "config.toml", "environment.json", "checkpoints/latest.safetensors")
    picture(tmp_path / "project/photos/b.png")
    made("extension", "manifest.json", "shard-of-glass.txt")
    picture(tmp_path / "mine/c.png")
    made("mine", "manifest.json", "shard-00000.h5")
    images = open_(tmp_path)
    assert images.keys == ["a.png", "mine/c.png", "project/photos/b.png"]
    found = reasons(images)
    assert found["cache"] == "folder of a temi cache"
    assert found["runs/1"] == "folder of a temi run"
    assert not any(name.startswith(("cache/", "runs/1/")) for name in found)
    assert found["extension/manifest.json"] == ".json"
    assert found["project/config.toml"] == ".toml"
    with pytest.raises(UserError, match="holds no image"):  # and none is made up for who asks for it by name
        open_(tmp_path / "cache")


def test_a_file_that_is_not_there_may_have_been_meant_as_an_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothere.jpg does not exist; give an image, a folder of images"):
        open_(tmp_path / "nothere.jpg")
