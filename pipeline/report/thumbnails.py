"""Small pictures of images for the report: bounded, never larger than the image, made once per run."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image, ImageOps

from temi.cache.files import write_atomic
from temi.pipeline.images import ImageSource, UnreadableImage
from temi.pipeline.images.decode import FORMATS
from temi.pipeline.progress import Progress

THUMBNAILS = "thumbnails.parquet"
SIDE = 96  # pixels of the longer side
QUALITY = 65  # of WebP: a photo takes about 2 kB
THREADS = 4
BLOCK = 256


def run_thumbnails(folder: Path, images: ImageSource, rows: Sequence[int], max_bytes: int) -> dict[int, bytes]:
    """WebP of each of `rows`, in this order until `max_bytes` are used; those in `folder` are not made again.

    An image that can no longer be read has none.
    """
    found = _read(folder / THUMBNAILS)
    before, used = len(found), 0
    chosen: dict[int, bytes] = {}
    with ThreadPoolExecutor(THREADS) as pool, Progress("thumbnails", len(rows), "img") as progress:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            missing = [row for row in block if row not in found]
            found |= zip(missing, pool.map(lambda row: thumbnail(images, row), missing), strict=True)
            for row in block:
                used += len(found[row])
                if used <= max_bytes and found[row]:
                    chosen[row] = found[row]
            progress.advance(len(block))
            if used > max_bytes:
                break
    if len(found) > before:
        _write(folder / THUMBNAILS, found)
    return chosen


def thumbnail(images: ImageSource, row: int) -> bytes:
    """Image `row` as WebP of at most SIDE pixels a side, upright; empty where it cannot be read."""
    try:
        image = _small(images, row)
    except (UnreadableImage, OSError, ValueError, SyntaxError):
        return b""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()


def _small(images: ImageSource, row: int) -> Image.Image:
    path = images.path(row)
    if path is not None:
        with suppress(OSError), Image.open(path, formats=FORMATS) as image:
            # A JPEG decodes straight to about this size, many times faster; every other kind takes the way below.
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                image.draft("RGB", (SIDE, SIDE))
                return _fit(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = images.read(row).permute(1, 2, 0).numpy()
    return _fit(Image.fromarray(np.ascontiguousarray(pixels)))


def _fit(image: Image.Image) -> Image.Image:
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)  # keeps the proportions and never enlarges
    return image


def _read(path: Path) -> dict[int, bytes]:
    try:
        table = pyarrow.parquet.read_table(path, columns=["row", "webp"])
    except (OSError, pa.ArrowException):  # missing, or half of another version: thumbnails can be made again
        return {}
    return dict(zip(table["row"].to_pylist(), table["webp"].to_pylist(), strict=True))


def _write(path: Path, found: dict[int, bytes]) -> None:
    buffer = io.BytesIO()
    columns = {"row": pa.array(found.keys(), pa.int64()), "webp": pa.array(found.values(), pa.binary())}
    pyarrow.parquet.write_table(pa.table(columns), buffer, compression="none")
    write_atomic(path, buffer.getvalue())
