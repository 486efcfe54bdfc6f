"""2,000 damaged image files through stage one: no crash, no hang, every row accounted for."""

import csv
import faulthandler
import io

import numpy as np
import pytest
import torch
from PIL import Image

from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode import embed as module
from temi.pipeline.encode.backbones import Backbone
from temi.pipeline.encode.preprocessing import Preprocessing

FILES = 2000
SECONDS = 120


def encode(pixels, kind, **options):
    data = io.BytesIO()
    Image.fromarray(pixels).convert(options.pop("mode", "RGB")).save(data, kind, **options)
    return data.getvalue()


def originals():
    """One valid file of every format and of the variants whose decoders differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) << 8).save(deep, "PNG")
    frames = [Image.fromarray(np.roll(pixels, shift)) for shift in (0, 9)]
    animated = {kind: io.BytesIO() for kind in ("GIF", "WEBP", "PNG")}
    for kind, data in animated.items():
        frames[0].save(data, kind, save_all=True, append_images=frames[1:])
    return [
        encode(pixels, "JPEG"),
        encode(pixels, "JPEG", progressive=True, exif=exif),
        encode(pixels, "JPEG", mode="CMYK"),
        encode(pixels, "JPEG", mode="L"),
        encode(pixels, "PNG", exif=exif),
        encode(pixels, "PNG", mode="P", transparency=3),
        encode(pixels, "PNG", mode="LA"),
        encode(pixels, "WEBP"),
        encode(pixels, "WEBP", lossless=True, mode="RGBA"),
        encode(pixels, "BMP"),
        encode(pixels, "GIF"),
        *(encode(pixels, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        encode(pixels, "TIFF", mode="1", compression="group4"),
        deep.getvalue(),
        *(data.getvalue() for data in animated.values()),
    ]


def mutate(data, random):
    """One to three damages: flipped bits, random or extreme bytes, cuts, repeats, a cut end; a fifth in the header."""
    damaged = bytearray(data)
    for _ in range(random.integers(1, 4)):
        end = len(damaged) if random.random() < 0.8 else min(len(damaged), 64)
        place = int(random.integers(end)) if end else 0
        length = int(random.integers(1, 33))
        damage = random.integers(6)
        if damage == 0:
            damaged[place : place + 1] = bytes([(damaged[place] if end else 0) ^ 1 << int(random.integers(8))])
        elif damage == 1:
            damaged[place : place + length] = random.bytes(length)
        elif damage == 2:
            damaged[place : place + 4] = random.choice(
                [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\1\0"]
            )
        elif damage == 3:
            del damaged[place : place + length]
        elif damage == 4:
            damaged[place:place] = damaged[place : place + length]
        else:
            del damaged[-length:]
    return bytes(damaged)


@pytest.mark.slow
def test_damaged_files_never_stop_a_run(tmp_path, monkeypatch):
    random, valid = np.random.default_rng(7), originals()
    photos = tmp_path / "photos"
    photos.mkdir()
    for row in range(FILES):
        data = valid[row % len(valid)]
        (photos / f"{row}.jpg").write_bytes(data if row < len(valid) else mutate(data, random))
    preprocessing = Preprocessing(32, (32, 32), "bicubic", 1 / 255, (0.5,) * 3, (0.5,) * 3)
    device = torch.device("cpu")
    mean_color = Backbone(
        "mean color", "1", "mean", "fp32", 3, preprocessing, device, lambda pixels: pixels.mean(dim=(2, 3))
    )
    monkeypatch.setattr(module, "load_backbone", lambda config: mean_color)
    config = EmbedConfig(views=1, workers=2, shard_rows=500, batch_size=20, max_pixels=1_000_000)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        cache = module.embed(str(photos), tmp_path / "cache", config)
    finally:
        faulthandler.cancel_dump_traceback_later()
    with (tmp_path / "cache/failures.csv").open(newline="", encoding="utf-8") as file:
        failures = {line["key"]: line["reason"] for line in csv.DictReader(file)}
    keys = np.array(cache.keys)
    assert len(keys) == FILES
    assert cache.ok[: len(valid)].all(), failures
    assert set(keys[~cache.ok]) == set(failures)
    assert all(0 < len(reason) < 400 and "\n" not in reason for reason in failures.values())
    assert 0.2 * FILES < len(failures) < 0.9 * FILES  # the damage is neither harmless nor total
    assert cache.verify() == []
