"""Sources that are not folders: tar, WebDataset, Parquet, lists, Hugging Face data sets."""

import io
import json
import pickle
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from temi.pipeline.errors import UserError
from temi.pipeline.images import UnreadableImage, open_source

LIMIT = 10**6
NAMES = ["cat/1.png", "cat/2.png", "cat/10.png", "dog/1.png", "dog/3.png"]


def picture(number):
    data = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (7, 5 + number, 3), np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


PICTURES = {name: picture(number) for number, name in enumerate(NAMES)}
LABELS = [0, 0, 0, 1, 1]


def open_(source, **options):
    return open_source(str(source), max_pixels=LIMIT, **options)


@pytest.fixture
def folder(tmp_path):
    for name, data in PICTURES.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "photos"


def write_tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def assert_reads(source, names=NAMES):
    """Rows hold the pictures `names`, also in a process that got the source pickled."""
    copy = pickle.loads(pickle.dumps(source))
    for row, name in [*enumerate(names), (0, names[0])]:
        expected = torch.from_numpy(np.array(Image.open(io.BytesIO(PICTURES[name])))).permute(2, 0, 1)
        assert torch.equal(source.read(row), expected)
        assert torch.equal(copy.read(row), expected)


# ---- tar


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "./photos/"])
def test_a_tar_of_a_folder_is_that_folder(tmp_path, folder, prefix):
    shuffled = {prefix + name: PICTURES[name] for name in sorted(NAMES, key=lambda name: name[-5:])}
    source, unpacked = open_(write_tar(tmp_path / "a.tar", shuffled | {prefix + ".hidden.png": b"x"})), open_(folder)
    assert source.keys == unpacked.keys == NAMES
    assert source.digest == unpacked.digest
    assert source.classes == unpacked.classes == ("cat", "dog")
    assert source.labels.tolist() == LABELS
    assert_reads(source)


def test_splits_in_a_tar(tmp_path):
    files = {f"train/{name}": data for name, data in PICTURES.items()} | {"test/dog/7.png": picture(7)}
    source = open_(write_tar(tmp_path / "a.tar", files))
    assert source.splits == {"test": (0, 1), "train": (1, 6)}
    assert source.labels.tolist() == [1, *LABELS]


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("name", ["shards", "shards/*.tar"])
def test_webdataset_shards(tmp_path, kind, name):
    for shard in (10, 2):
        files = {}
        for number in range(2):
            label = {"cls": str(number * 3), "json": json.dumps({"label": number * 3, "text": "a cat"})}[kind]
            files |= {
                f"{number:04}.png": PICTURES[NAMES[number + (shard == 10)]],
                f"{number:04}.{kind}": label.encode(),
            }
        write_tar(tmp_path / f"shards/part-{shard}.tar", files)
    source = open_(tmp_path / name)
    assert source.keys == ["part-2/0000.png", "part-2/0001.png", "part-10/0000.png", "part-10/0001.png"]
    assert source.labels.tolist() == [0, 3, 0, 3]
    assert source.classes == ("0", "1", "2", "3")
    assert_reads(source, [NAMES[0], NAMES[1], NAMES[1], NAMES[2]])


@pytest.mark.parametrize("broken", ["{", "", "[" * 100_000])
def test_a_label_that_cannot_be_read_is_told_and_its_image_kept(tmp_path, broken):
    images = {f"{number}.png": PICTURES[name] for number, name in enumerate(NAMES)}
    labels = {f"{number}.json": json.dumps({"label": number}).encode() for number in range(5)}
    source = open_(
        write_tar(tmp_path / "a.tar", images | labels | {name: broken.encode() for name in ("3.json", "._4.json")})
    )
    assert source.keys == list(images)
    assert source.labels.tolist() == [0, 1, 2, -1, 4]
    assert source.skipped == [("3.json", "file whose label cannot be read"), ("._4.json", "hidden")]
    assert_reads(source)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"no tar" * 200), "not a readable, uncompressed tar"),
        (lambda path: write_tar(path, PICTURES, "w:gz"), "not a readable, uncompressed tar"),
        (lambda path: write_tar(path, {"a.txt": b"x"}), "holds no image"),
        (lambda path: path.write_bytes(write_tar(path, PICTURES).read_bytes()[:700]), "not a readable|holds no"),
    ],
)
def test_a_bad_tar_is_one_sentence(tmp_path, write, sentence):
    write(tmp_path / "a.tar")
    with pytest.raises(UserError, match=sentence):
        open_(tmp_path / "a.tar")


def test_links_and_devices_in_a_tar_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        image = tarfile.TarInfo("../../1.png")
        image.size = len(PICTURES[NAMES[0]])
        archive.addfile(image, io.BytesIO(PICTURES[NAMES[0]]))
        image = tarfile.TarInfo("2.png")
        image.size = len(PICTURES[NAMES[1]])
        archive.addfile(image, io.BytesIO(PICTURES[NAMES[1]]))
    assert open_(tmp_path / "a.tar").keys == ["2.png"]


# ---- Parquet


def write_parquet(path, names=NAMES, column="image", struct=True, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [PICTURES.get(name) for name in names]
    images = [{"bytes": value, "path": None} for value in values] if struct else values
    pq.write_table(pa.table({column: images, **columns}), path, row_group_size=2)
    return path


@pytest.mark.parametrize("options", [{}, {"struct": False}, {"column": "jpg", "struct": False}])
def test_parquet_rows_are_images(tmp_path, options):
    source = open_(write_parquet(tmp_path / "a.parquet", label=LABELS, key=NAMES, **options))
    assert source.keys == NAMES
    assert source.labels.tolist() == LABELS
    assert_reads(source)


def test_parquet_in_parts(tmp_path):
    write_parquet(tmp_path / "data/part-10.parquet", NAMES[2:])
    write_parquet(tmp_path / "data/part-9.parquet", NAMES[:2])
    for name in ("data", "data/*.parquet"):
        source = open_(tmp_path / name)
        assert source.keys == ["0", "1", "2", "3", "4"]
        assert source.labels.tolist() == [-1] * 5
        assert_reads(source)


def test_parquet_digest_follows_the_images(tmp_path):
    one = open_(write_parquet(tmp_path / "1.parquet", NAMES)).digest
    assert open_(write_parquet(tmp_path / "2.parquet", NAMES)).digest == one
    assert open_(write_parquet(tmp_path / "3.parquet", [*NAMES[:4], NAMES[0]])).digest != one


def test_parquet_of_the_hub_names_its_classes(tmp_path, folder):
    hub_data(folder).to_parquet(tmp_path / "a.parquet")
    source = open_(tmp_path / "a.parquet")
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == LABELS
    assert_reads(source)


def test_a_missing_value_is_an_unreadable_image(tmp_path):
    source = open_(write_parquet(tmp_path / "a.parquet", ["nothing", NAMES[0]], struct=False))
    with pytest.raises(UnreadableImage, match="no image bytes"):
        source.read(0)
    assert source.read(1).shape[0] == 3


def test_a_row_group_that_another_thread_puts_in_its_place_is_not_read_for_ones_own(tmp_path):
    source = open_(write_parquet(tmp_path / "a.parquet"))

    class Interrupted(type(source)):
        """Another thread reads the last row whenever this one has looked at what is kept, or has kept something."""

        reading = False

        def interrupt(self):
            if not self.reading:
                self.reading = True
                self.data(4)
                self.reading = False

        @property
        def _kept(self):
            kept = self.__dict__["_kept"]
            self.interrupt()
            return kept

        @_kept.setter
        def _kept(self, value):
            self.__dict__["_kept"] = value
            self.interrupt()

    source.__class__ = Interrupted
    assert [source.data(row) for row in (0, 1, 4, 0)] == [PICTURES[NAMES[row]] for row in (0, 1, 4, 0)]


def test_an_error_that_says_nothing_is_told_by_its_kind(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(UserError, match=r"a.parquet is not a Parquet file \(OSError\); give another one"):
        open_(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"PAR1 no"), "is not a Parquet file"),
        (lambda path: pq.write_table(pa.table({"text": ["x"]}), path), "no column of image bytes"),
        (lambda path: write_parquet(path, key=["same"] * 5), "names same twice"),
    ],
)
def test_a_bad_parquet_file_is_one_sentence(tmp_path, write, sentence):
    write(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=sentence):
        open_(tmp_path / "a.parquet")


# ---- lists


def test_a_text_file_lists_images_in_its_order(tmp_path, folder):
    path = tmp_path / "list.txt"
    path.write_text("\n".join(f"photos/{name}" for name in reversed(NAMES)) + "\n\n")
    source = open_(path)
    assert source.keys == [f"photos/{name}" for name in reversed(NAMES)]
    assert source.classes == ()
    assert_reads(source, NAMES[::-1])


@pytest.mark.parametrize(("suffix", "sign"), [("csv", ","), ("tsv", "\t")])
def test_a_csv_may_have_labels_and_splits(tmp_path, folder, suffix, sign):
    lines = [["label", "path", "split"]]
    lines += [[name[:3], name, "test" if number % 2 else "train"] for number, name in enumerate(NAMES)]
    path = tmp_path / f"list.{suffix}"
    path.write_text("\n".join(sign.join(line) for line in lines))
    source = open_(path, root=folder)
    assert source.keys == [NAMES[0], NAMES[2], NAMES[4], NAMES[1], NAMES[3]]
    assert source.splits == {"train": (0, 3), "test": (3, 5)}
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 1, 0, 1]
    assert_reads(source, source.keys)


def test_a_listed_file_that_is_missing_keeps_its_row(tmp_path, folder):
    (tmp_path / "list.txt").write_text("photos/cat/1.png\nphotos/nothing.png\n")
    source = open_(tmp_path / "list.txt")
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        source.read(1)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.txt", None, "does not exist"),
        ("a.txt", b"", "lists no image"),
        ("a.txt", b"\xff\xfe\x00", "save it as UTF-8"),
        ("a.csv", b"name,label\nx,1\n", "no column of paths"),
        ("a.csv", b"path,label\nx,1\nx,2\n", "names x twice"),
    ],
)
def test_a_bad_list_is_one_sentence(tmp_path, name, data, sentence):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        open_(tmp_path / name)


# ---- Hugging Face data sets


def hub_data(folder, names=NAMES, labels=LABELS):
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"]), "image": datasets.Image()})
    images = [{"bytes": PICTURES[name], "path": None} for name in names]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_a_data_set_saved_to_disk(tmp_path, folder):
    parts = {"train": hub_data(folder), "test": hub_data(folder, NAMES[:2], LABELS[:2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    source = open_(f"hf:{tmp_path / 'saved'}")
    assert source.splits == {"train": (0, 5), "test": (5, 7)}
    assert source.keys[4:6] == ["train/4", "test/0"]
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [*LABELS, 0, 0]
    assert_reads(source, NAMES + NAMES[:2])
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "again")
    assert open_(f"hf:{tmp_path / 'again'}").digest == source.digest


def test_the_rows_of_a_data_set_without_splits_are_named_by_their_numbers(tmp_path, folder):
    hub_data(folder).save_to_disk(tmp_path / "saved")
    source = open_(f"hf:{tmp_path / 'saved'}")
    assert source.keys == ["0", "1", "2", "3", "4"]
    assert source.splits == {}
    assert_reads(source)


@pytest.mark.parametrize("scheme", ["hf", "hf-stream"])
def test_a_folder_of_data_files_loaded_or_streamed(tmp_path, folder, scheme, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    hub_data(folder).to_parquet(tmp_path / "data/train-00000.parquet")
    hub_data(folder, NAMES[1:3], LABELS[1:3]).to_parquet(tmp_path / "data/test-00000.parquet")
    source = open_(f"{scheme}:{tmp_path / 'data'}")
    assert source.splits == {"train": (0, 5), "test": (5, 7)}
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [*LABELS, 0, 0]
    assert_reads(source, NAMES + NAMES[1:3])
    assert torch.equal(source.read(3), source.read(3))


def test_a_data_set_of_files_has_a_digest_of_their_sizes(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = open_(f"hf:{folder}")
    assert source.classes == ("cat", "dog")
    assert_reads(source, sorted(NAMES))  # the order of `datasets`
    (folder / NAMES[2]).write_bytes(PICTURES[NAMES[2]] + b"longer")
    assert open_(f"hf:{folder}").digest != source.digest


@pytest.mark.parametrize(
    ("name", "sentence"), [("text", "no column of images, only text"), ("missing", "does not exist")]
)
def test_a_bad_data_set_is_one_sentence(tmp_path, name, sentence):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(UserError, match=sentence):
        open_(f"hf:{tmp_path / name}")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'temi-clustering\[datasets\]'"):
        open_("hf:some/set")


def test_a_pattern_without_a_match_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        open_(tmp_path / "*.tar")
