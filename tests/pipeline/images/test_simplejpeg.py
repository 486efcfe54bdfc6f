"""simplejpeg gives the pixels of Pillow, and the same files are unreadable with and without it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from temi.pipeline.images import UnreadableImage, decode

pytest.importorskip("simplejpeg")
LIMIT = 10**6


def picture(height: int = 67, width: int = 45) -> Image.Image:
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (9, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = random.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, format: str = "JPEG", **settings: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **settings)
    return data.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


FILES = {
    **{f"subsampling {number}": jpeg(picture(), subsampling=number) for number in (0, 1, 2)},
    **{f"{side} pixels": jpeg(picture(side, side + 3), quality=60) for side in (1, 8, 17)},
    **{f"orientation {number}": jpeg(picture(), exif=exif(number)) for number in range(10)},
    "progressive": jpeg(picture(), progressive=True),
    "stored as RGB": jpeg(picture(), keep_rgb=True),
    "gray": jpeg(picture().convert("L")),
    "CMYK": jpeg(picture().convert("CMYK")),
    "two pictures": jpeg(picture(), "MPO", save_all=True, append_images=[picture(20, 20)]),
    "bytes after the end": jpeg(picture()) + b"more" * 100,
    "restart markers": jpeg(picture(), restart_marker_blocks=2),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_pillows(name, monkeypatch):
    fast = decode.decode_image(FILES[name], LIMIT)
    monkeypatch.setattr(decode, "simplejpeg", None)
    slow = decode.decode_image(FILES[name], LIMIT)
    assert torch.equal(fast, slow)
    assert fast.stride() == slow.stride()


def test_most_jpegs_take_the_fast_way(monkeypatch):
    slow = []
    monkeypatch.setattr(decode, "rgb_tensor", lambda image: slow.append(image.mode) or torch.zeros(3, 1, 1).byte())
    for data in FILES.values():
        decode.decode_image(data, LIMIT)
    assert slow == ["L", "CMYK"]


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_judged_by_pillow(seed, monkeypatch):
    random = np.random.default_rng(seed)
    data = bytearray(jpeg(picture()))
    if seed % 2:
        del data[int(random.integers(2, len(data))) :]
    else:
        for place in random.integers(2, len(data), 3):
            data[place] = random.integers(256)

    def outcome():
        try:
            return decode.decode_image(bytes(data), LIMIT).tolist()
        except UnreadableImage as error:
            return str(error)

    fast = outcome()
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert fast == outcome()
