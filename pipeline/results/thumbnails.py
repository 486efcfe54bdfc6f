"""Small pictures of images for the report: bounded, never larger than the image, made once per run."""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Float32
from PIL import Image, ImageOps

from temi.cache import CacheError
from temi.cache.files import write_atomic
from temi.pipeline.images import ImageSource, UnreadableImage
from temi.pipeline.images.decode import FORMATS, picture
from temi.pipeline.progress import Progress
from temi.pipeline.results.finished import FinishedRun

THUMBNAILS = "thumbnails.parquet"
SIDE = 128  # pixels of the longer side
QUALITY = 60  # of WebP: a photo takes about 3 kB
LARGE_SIDE, LARGE_QUALITY = 1600, 85  # of an image that is looked at alone
THREADS = 4
BLOCK = 256
COLUMNS = ["webp", "brightness", "contrast", "sharpness"]
BLANK_CONTRAST, BLACK_BRIGHTNESS = 6.0, 40.0  # from 0 to 255
BLURRED = 4.0  # robust deviations of the logarithm of the sharpness below its median


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as WebP, empty where the image cannot be read, and what is plain to see of it.

    Attributes
    ----------
    brightness : mean of the strongest of red, green and blue, 0 to 255
    contrast : standard deviation of the luminance, 0 to 255
    sharpness : mean absolute Laplacian of the luminance over its standard deviation
    """

    webp: bytes = b""
    brightness: float = 0.0
    contrast: float = 0.0
    sharpness: float = 0.0


def run_thumbnails(folder: Path, images: ImageSource, rows: Sequence[int], max_bytes: int) -> dict[int, Thumbnail]:
    """Thumbnails of `rows`, in this order until `max_bytes` are used; those in `folder` are not made again.

    An image that cannot be read has none, and is tried again the next time. A folder that cannot be written to keeps
    none.
    """
    found = kept_thumbnails(folder)
    before, used = len(found), 0
    chosen: dict[int, Thumbnail] = {}
    with ThreadPoolExecutor(THREADS) as pool, Progress("thumbnails", len(rows), "img") as progress:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            missing = [row for row in block if row not in found]
            found |= zip(missing, pool.map(lambda row: thumbnail(images, row), missing), strict=True)
            for row in block:
                used += len(found[row].webp)
                if used <= max_bytes and found[row].webp:
                    chosen[row] = found[row]
            progress.advance(len(block))
            if used > max_bytes:
                break
    readable = {row: seen for row, seen in found.items() if seen.webp}
    if len(readable) > before:
        keep(folder, readable)
    return chosen


def thumbnail(images: ImageSource, row: int) -> Thumbnail:
    """Image `row` with at most SIDE pixels a side, upright; an empty one where it cannot be read."""
    try:
        image = _small(images, row)
    except (UnreadableImage, OSError, ValueError, SyntaxError):
        return Thumbnail()
    gray = np.asarray(image.convert("L"), dtype=np.float32)
    contrast = float(gray.std())
    brightness = float(np.asarray(image).max(-1).mean())  # the luminance of pure blue is as low as that of black
    return Thumbnail(_webp(image, QUALITY), brightness, contrast, laplacian(gray) / max(contrast, 1.0))


def large(images: ImageSource, row: int) -> bytes:
    """Image `row` as WebP of at most LARGE_SIDE pixels a side; raises UnreadableImage."""
    return _webp(_fit(picture(images.read(row)), LARGE_SIDE), LARGE_QUALITY)


def laplacian(gray: Float32[np.ndarray, "H W"]) -> float:
    """Mean absolute Laplacian, 0 for an image of fewer than three pixels a side."""
    if min(gray.shape) < 3:
        return 0.0
    inner = 4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    return float(np.abs(inner).mean())


def oddities(thumbnails: Mapping[int, Thumbnail]) -> dict[int, str]:
    """What is odd about the pixels of images: black, blank, or blurred beside the others."""
    found: dict[int, str] = {}
    sharp = np.log([max(seen.sharpness, 1e-6) for seen in thumbnails.values()] or [1.0])
    middle = np.median(sharp)
    low = middle - BLURRED * 1.4826 * np.median(np.abs(sharp - middle))
    for row, seen in thumbnails.items():
        if seen.contrast < BLANK_CONTRAST:
            found[row] = "black" if seen.brightness < BLACK_BRIGHTNESS else "blank"
        elif np.log(max(seen.sharpness, 1e-6)) < low:
            found[row] = "blurred"
    return found


def kept_oddities(run: FinishedRun) -> dict[int, str]:
    """`oddities` of the images that have a thumbnail, by position in the assignments."""
    position = {int(row): place for place, row in enumerate(run.trained["row"])}
    kept = {row: seen for row, seen in kept_thumbnails(run.shared).items() if row in position}
    return {position[row]: what for row, what in oddities(kept).items()}


def kept_thumbnails(folder: Path) -> dict[int, Thumbnail]:
    """Those made before, by row; none where the file is missing or of another version."""
    try:
        table = pyarrow.parquet.read_table(folder / THUMBNAILS, columns=["row", *COLUMNS])
    except (OSError, pa.ArrowException):  # thumbnails can be made again
        return {}
    if (table.schema.metadata or {}).get(b"side") != str(SIDE).encode():
        return {}
    columns = (table[name].to_pylist() for name in COLUMNS)
    return dict(zip(table["row"].to_pylist(), map(Thumbnail, *columns), strict=True))


def _small(images: ImageSource, row: int) -> Image.Image:
    path = images.path(row)
    if path is not None:
        with suppress(OSError), Image.open(path, formats=FORMATS) as image:
            # A JPEG decodes straight to about this size, many times faster; every other kind takes the way below.
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                image.draft("RGB", (SIDE, SIDE))
                return _fit(ImageOps.exif_transpose(image).convert("RGB"), SIDE)
    return _fit(picture(images.read(row)), SIDE)


def _fit(image: Image.Image, side: int) -> Image.Image:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)  # keeps the proportions and never enlarges
    return image


def _webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def keep(folder: Path, found: Mapping[int, Thumbnail]) -> None:
    """Leave thumbnails for the next time; none in a folder that cannot be written to."""
    buffer = io.BytesIO()
    columns = {
        "row": pa.array(found.keys(), pa.int64()),
        "webp": pa.array([t.webp for t in found.values()], pa.binary()),
    }
    for name in COLUMNS[1:]:
        columns[name] = pa.array([getattr(seen, name) for seen in found.values()], pa.float32())
    table = pa.table(columns).replace_schema_metadata({"side": str(SIDE)})
    pyarrow.parquet.write_table(table, buffer, compression="none")
    with suppress(CacheError):
        write_atomic(folder / THUMBNAILS, buffer.getvalue())
