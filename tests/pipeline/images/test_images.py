"""Image sources: the order of rows, labels and splits of folders, formats, and what cannot be read."""

import gzip
import os
import struct

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from temi.pipeline.errors import UserError
from temi.pipeline.images import UnreadableImage, open_source
from temi.pipeline.images import torchvision_sets as sets
from temi.pipeline.images.decode import decode_image
from temi.pipeline.images.folder import FolderImages, natural_key

LIMIT = 1_000_000


def gradient(height=20, width=30):
    row, column = np.mgrid[0:height, 0:width]
    return np.stack([row * 8, column * 8, 255 - row * 4], -1).astype(np.uint8)


def save(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gradient() if pixels is None else pixels).save(path, **options)
    return path


def decode(path, limit=LIMIT):
    return decode_image(path.read_bytes(), limit)


def expected(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


# ---- folders


def test_rows_are_in_natural_order_and_keys_are_posix_paths(tmp_path):
    for name in ("b/img10.png", "b/img2.png", "a/x.png", "B/y.png", "img1.png", "b/img02.png"):
        save(tmp_path / name)
    assert open_source(str(tmp_path), max_pixels=LIMIT).keys == [
        "B/y.png", "a/x.png", "b/img02.png", "b/img2.png", "b/img10.png", "img1.png",
    ]  # fmt: skip


def test_natural_key_orders_any_names():
    names = ["a1b", "a", "1", "a/b", "10/x", "9/x", "a10", "a2", "", "a-", "²"]
    assert sorted(sorted(names), key=natural_key) == sorted(reversed(names), key=natural_key)
    assert sorted(["a10", "a2", "10/x", "9/x"], key=natural_key) == ["9/x", "10/x", "a2", "a10"]


def test_class_folders_become_labels(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "cat/2.png"):
        save(tmp_path / name)
    source = FolderImages(tmp_path, LIMIT)
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 1]
    assert source.splits == {}


@pytest.mark.parametrize(
    "names", [("1.png", "2.png"), ("cat/1.png", "2.png"), ("cat/1.png",), ("a/b/1.png", "c/2.png")]
)
def test_other_folders_have_no_labels(tmp_path, names):
    for name in names:
        save(tmp_path / name)
    source = FolderImages(tmp_path, LIMIT)
    assert source.classes == ()
    assert set(source.labels.tolist()) == {-1}


def test_split_folders_become_row_ranges(tmp_path):
    for name in ("train/cat/1.png", "test/dog/1.png", "train/dog/3.png", "test/cat/9.png", "train/cat/2.png"):
        save(tmp_path / name)
    source = FolderImages(tmp_path, LIMIT)
    assert source.splits == {"test": (0, 2), "train": (2, 5)}
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 0, 0, 1]


def test_splits_without_classes(tmp_path):
    save(tmp_path / "train/1.png")
    save(tmp_path / "validation/1.png")
    source = FolderImages(tmp_path, LIMIT)
    assert source.splits == {"train": (0, 1), "validation": (1, 2)}
    assert source.classes == ()


def test_hidden_files_are_left_out_and_links_followed(tmp_path):
    inside, outside = tmp_path / "in", save(tmp_path / "out/secret.png")
    save(inside / "1.png")
    save(inside / ".hidden.png")
    save(inside / ".cache/2.png")
    (inside / "leaves.png").symlink_to(outside)
    (inside / "folder").symlink_to(outside.parent)
    (inside / "stays.png").symlink_to(inside / "1.png")
    (inside / "loop").symlink_to(inside)
    (inside / "dangling.png").symlink_to(inside / "nothing.png")
    images = FolderImages(inside, LIMIT)
    assert images.keys == ["1.png", "folder/secret.png", "leaves.png", "stays.png"]
    assert [path for path, _ in images.skipped] == [".cache", ".hidden.png", "dangling.png", "loop"]


def test_digest_is_of_names_and_sizes_not_of_times_or_place(tmp_path):
    for top in ("here", "there"):
        save(tmp_path / top / "1.png")
        save(tmp_path / top / "2.png")
    os.utime(tmp_path / "there/1.png", (0, 0))
    here = FolderImages(tmp_path / "here", LIMIT).digest
    assert FolderImages(tmp_path / "there", LIMIT).digest == here
    (tmp_path / "there/1.png").write_bytes(b"shorter")
    assert FolderImages(tmp_path / "there", LIMIT).digest != here
    save(tmp_path / "there/1.png")
    assert FolderImages(tmp_path / "there", LIMIT).digest == here
    (tmp_path / "there/1.png").rename(tmp_path / "there/3.png")
    assert FolderImages(tmp_path / "there", LIMIT).digest != here


def test_a_name_that_is_not_utf8_keeps_its_row(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:
        Image.fromarray(gradient()).save(file, "PNG")
    source = FolderImages(tmp_path, LIMIT)
    assert source.keys == ["caf\\xe9.png"]
    assert source.read(0).shape == (3, 20, 30)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no image"),
        (lambda path: path.write_text("x"), "is a file"),
    ],
)
def test_no_images_is_one_sentence(tmp_path, make, sentence):
    make(tmp_path / "images")
    with pytest.raises(UserError, match=sentence):
        open_source(str(tmp_path / "images"), max_pixels=LIMIT)


def test_a_vanished_image_is_unreadable(tmp_path):
    path = save(tmp_path / "1.png")
    source = FolderImages(tmp_path, LIMIT)
    path.unlink()
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        source.read(0)


# ---- formats


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("tiff", {}), ("bmp", {}), ("webp", {"lossless": True})])
def test_lossless_formats_return_the_pixels(tmp_path, suffix, options):
    assert torch.equal(decode(save(tmp_path / f"a.{suffix}", **options)), expected(gradient()))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2, "quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_equals_pillow(tmp_path, options, mode):
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient(123, 77)).convert(mode).save(path, **options)
    assert torch.equal(decode(path), expected(np.asarray(Image.open(path).convert("RGB"))))


def test_cmyk_jpeg_equals_pillow(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient()).convert("CMYK").save(path)
    assert torch.equal(decode(path), expected(np.asarray(Image.open(path).convert("RGB"))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_rotation_is_honored(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = gradient()
    path = save(
        tmp_path / f"a.{suffix}", stored, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {})
    )
    turn = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip
    difference = (decode(path).int() - expected(turn[orientation](stored)).int()).abs().max()
    assert difference <= (8 if suffix == "jpg" else 0)


def test_alpha_is_composited_on_white(tmp_path):
    rgba = np.dstack([gradient(), np.zeros((20, 30), np.uint8)])
    rgba[:, 15:, 3] = 255
    pixels = decode(save(tmp_path / "a.png", rgba))
    assert (pixels[:, :, :15] == 255).all()
    assert torch.equal(pixels[:, :, 15:], expected(gradient()[:, 15:]))


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((3, 1), 1)
    image.save(tmp_path / "a.png", transparency=0)
    pixels = decode(tmp_path / "a.png")
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 1, 3].tolist() == [40, 50, 60]


def test_gif_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "a.gif")[:, 4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_gray_keeps_its_range(tmp_path, suffix):
    deep = (np.arange(600).reshape(20, 30) * 109).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    assert torch.equal(decode(tmp_path / f"a.{suffix}"), expected(np.dstack([deep >> 8] * 3).astype(np.uint8)))


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 7, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableImage, match="no known range"):
        decode(tmp_path / "a.tiff")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif"])
def test_truncated_images_are_unreadable(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise)
    with pytest.raises(UnreadableImage):
        decode_image(path.read_bytes()[: path.stat().st_size // 2], LIMIT)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_other_files_are_unreadable(data):
    with pytest.raises(UnreadableImage):
        decode_image(data, LIMIT)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_decompression_bomb_is_refused_by_the_limit(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}")
    assert decode(path, 600).shape == (3, 20, 30)
    with pytest.raises(UnreadableImage, match=r"30 x 20 pixels .* limit of 599"):
        decode(path, 599)


# ---- data sets by name


def test_digits():
    source = open_source("digits", max_pixels=LIMIT)
    assert len(source.keys) == len(set(source.keys)) == 1797
    assert source.classes == tuple("0123456789")
    assert source.read(0).shape == (3, 8, 8)
    assert max(int(source.read(row).max()) for row in range(20)) == 255
    assert source.labels[:10].tolist() == list(range(10))


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_fashion(folder, suffix):
    for prefix, count in (("train", 5), ("t10k", 3)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", np.arange(count * 6).reshape(count, 2, 3))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count))


@pytest.mark.parametrize(("place", "suffix"), [(".", ".gz"), ("FashionMNIST/raw", "")])
def test_idx_files_are_read_where_debian_and_torchvision_put_them(tmp_path, place, suffix):
    write_fashion(tmp_path / place, suffix)
    source = open_source("fashion-mnist", root=tmp_path, max_pixels=LIMIT)
    assert source.splits == {"train": (0, 5), "test": (5, 8)}
    assert source.labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert source.keys[4:6] == ["train/4", "test/0"]
    assert source.classes[0] == "T-shirt/top"
    assert source.read(5).tolist() == [[[0, 1, 2], [3, 4, 5]]] * 3


def test_a_damaged_idx_file_is_one_sentence(tmp_path):
    write_fashion(tmp_path, "")
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="train-images-idx3-ubyte is not a complete idx file"):
        open_source("fashion-mnist", root=tmp_path, max_pixels=LIMIT)


class FakeSet:
    """A torchvision data set of two RGB images per split."""

    classes = ("cat", "dog")

    def __init__(self, root, train, download):
        self.targets = [0, 1] if train else [1, 1]

    def __len__(self):
        return 2

    def __getitem__(self, row):
        return Image.new("RGB", (3, 3), (row, self.targets[row], 0)), self.targets[row]


def test_torchvision_splits_follow_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeSet)
    source = open_source("cifar10", root=tmp_path, max_pixels=LIMIT)
    assert source.keys == ["train/0", "train/1", "test/0", "test/1"]
    assert source.splits == {"train": (0, 2), "test": (2, 4)}
    assert source.labels.tolist() == [0, 1, 1, 1]
    assert source.classes == ("cat", "dog")
    assert source.read(3)[:, 0, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("File not found or corrupted.")])
def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(UserError, match=r"cifar10 is not below .* cannot be downloaded .*--root"):
        open_source("cifar10", root=tmp_path, max_pixels=LIMIT)


def test_every_named_set_exists_in_torchvision():
    assert [recipe.name for recipe in sets.SETS.values() if not hasattr(torchvision.datasets, recipe.name)] == []
