"""Bytes of an image file -> RGB uint8, upright, on white.

Pillow opens everything and decides what an image is. The pixels of a JPEG come from simplejpeg where that is installed:
the same libjpeg-turbo with the same numbers, without Pillow's four bytes a pixel and its copies. What simplejpeg warns
about goes back to Pillow, so that the same files are unreadable with and without it.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from temi.pipeline.images.source import UnreadableImage

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# A closed list: Pillow's other decoders (EPS runs Ghostscript) are no place for files from anywhere.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp"})
# What `decode_image` does to pixels, by name: part of a cache's fingerprint.
DECODING = "rgb8, exif rotation, alpha on white"

Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is fixed and only warns; decode_image applies one that can be set


def decode_image(data: bytes, max_pixels: int) -> UInt8[Tensor, "3 H W"]:
    """Decode one image file: the first frame, 8 bits per channel, EXIF rotation applied, alpha composited on white.

    Raises
    ------
    UnreadableImage
        Not an image of a known format, damaged, truncated, or more than `max_pixels` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.size, max_pixels)
            pixels = _jpeg(data, image)
            return rgb_tensor(image) if pixels is None else pixels
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to, from SyntaxError to struct.error
        raise UnreadableImage(_reason(error)) from None


def rgb_tensor(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """A Pillow image of any mode as RGB: see `decode_image`."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # a copy only if there is something to turn
    # strides stay those of (H, W, 3): resizing is nearly twice as fast on them
    return torch.from_numpy(np.array(_rgb(image))).permute(2, 0, 1)


def _jpeg(data: bytes, image: Image.Image) -> UInt8[Tensor, "3 H W"] | None:
    """Pixels of the JPEG file that Pillow opened as `image`; None where Pillow has to decode it."""
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode != "RGB":
        return None
    try:
        # Defaults of libjpeg, which Pillow uses; strict: what is only a warning is an error here
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError:
        return None
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return torch.from_numpy(np.ascontiguousarray(turn(pixels)) if turn else pixels).permute(2, 0, 1)


# EXIF's orientations but 1, and what brings (H, W, 3) upright: ImageOps.exif_transpose for arrays.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def rgb_array(array: UInt8[np.ndarray, "..."]) -> UInt8[Tensor, "3 H W"]:
    """A grayscale (H, W) or RGB (H, W, 3) array as RGB."""
    pixels = torch.from_numpy(np.ascontiguousarray(array))
    return pixels.expand(3, *pixels.shape).contiguous() if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels are more than the limit of {max_pixels} (embed.max_pixels)")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit grayscale by its high byte, as Pillow itself does for 16-bit color."""
    values: np.ndarray[Any, Any] = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
        raise UnreadableImage(f"pixels of mode {image.mode} have no known range of brightness")
    return Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, TIFF, GIF or BMP image"
    text = " ".join(str(error).split())[:200]
    return f"damaged or truncated ({type(error).__name__}{': ' if text else ''}{text})"
