"""Bytes of an image file -> RGB uint8, upright, on white.

Pillow opens everything and decides what an image is. The pixels of a JPEG come from simplejpeg where that is installed:
the same libjpeg-turbo with the same numbers, without Pillow's four bytes a pixel and its copies. What simplejpeg warns
about goes back to Pillow, so that the same files are unreadable with and without it.
"""

import io
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from temi.pipeline.errors import kind_and_reason
from temi.pipeline.extras import install
from temi.pipeline.images.source import ImageNote, UnreadableImage

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

HEIF_SUFFIXES = (".heic", ".heif")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def _readable() -> dict[str, tuple[str, ...]]:
    """Pillow's name of every format that is read here, and its suffixes.

    A closed list: Pillow's other decoders (EPS runs Ghostscript) are no place for files from anywhere.
    """
    formats: dict[str, tuple[str, ...]] = {
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
        "PNG": (".png",),
        "WEBP": (".webp",),
        "TIFF": (".tif", ".tiff"),
        "GIF": (".gif",),
        "BMP": (".bmp",),
        "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    }
    if features.check("avif"):
        formats["AVIF"] = (".avif",)
    if features.check("jpg_2000"):
        formats["JPEG2000"] = (".jp2", ".j2k", ".jpf", ".jpx")
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        formats["HEIF"] = HEIF_SUFFIXES
    return formats


READABLE = _readable()
FORMATS = tuple(READABLE)
SUFFIXES = frozenset(suffix for suffixes in READABLE.values() for suffix in suffixes)
DEEP_BITS = (8, 10, 12, 14, 16)  # that cameras and scanners use of 16
MAX_SAMPLE_VALUE, SMAX_SAMPLE_VALUE = 281, 341  # TIFF 6.0: largest value of whole numbers, of any numbers
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
NOISE = b"\xaa" * 64  # coefficients other than the zeros that a decoder puts where data end; no marker
# What `decode_image` does to pixels, by name: part of a cache's fingerprint.
DECODING = "rgb8, exif rotation, alpha on white, deep gray by its range"

Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is fixed and only warns; decode_image applies one that can be set


def decode_image(data: bytes, max_pixels: int) -> UInt8[Tensor, "3 H W"]:
    """Decode one image file: the first frame, 8 bits per channel, EXIF rotation applied, alpha composited on white.

    An `ImageNote` is issued where something had to be assumed.

    Raises
    ------
    UnreadableImage
        Not an image of a known format, damaged, truncated, or more than `max_pixels` pixels.
    """
    try:
        return _decoded(data, max_pixels)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to, from SyntaxError to struct.error
        if "truncated" in str(error) and (pixels := _unclosed_jpeg(data, max_pixels)) is not None:
            return pixels
        raise UnreadableImage(_reason(error, data)) from None


def _decoded(data: bytes, max_pixels: int) -> UInt8[Tensor, "3 H W"]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_pixels(image.size, max_pixels)
        pixels = _jpeg(data, image)
        return rgb_tensor(image) if pixels is None else pixels


def _unclosed_jpeg(data: bytes, max_pixels: int) -> UInt8[Tensor, "3 H W"] | None:
    """The pixels of a JPEG that lacks its end marker and nothing else; None for any other file.

    A scan that is not finished would take noise put before the marker for coefficients; a finished one ignores it.
    """
    if not data.startswith(JPEG_START):
        return None
    body = data.removesuffix(JPEG_END[:1])
    try:
        pixels, disturbed = (_decoded(body + end, max_pixels) for end in (JPEG_END, NOISE + JPEG_END))
    except Exception:  # as in `decode_image`; its own reason is the better one
        return None
    if not torch.equal(pixels, disturbed):
        return None
    warnings.warn("JPEG without its last bytes", ImageNote, stacklevel=2)
    return pixels


def rgb_tensor(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """A Pillow image of any mode as RGB: see `decode_image`."""
    white = _white(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # a copy only if there is something to turn
    # strides stay those of (H, W, 3): resizing is nearly twice as fast on them
    return torch.from_numpy(np.array(_rgb(image, white))).permute(2, 0, 1)


def picture(pixels: UInt8[Tensor, "3 H W"]) -> Image.Image:
    """Pixels as an image of Pillow: the way back from `rgb_tensor`."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


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


def _rgb(image: Image.Image, white: float | None) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_from_deep(np.asarray(image), white)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _white(image: Image.Image) -> float | None:
    """The largest value of a sample, where a TIFF tells it."""
    tags = getattr(image, "tag_v2", {})
    value = tags.get(MAX_SAMPLE_VALUE, tags.get(SMAX_SAMPLE_VALUE))
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _from_deep(values: np.ndarray, white: float | None) -> UInt8[np.ndarray, "H W"]:
    """Gray of more than 8 bits, or of real numbers, as 8 bits. White is what the file says, else what the data tell."""
    low, high = float(values.min()), float(values.max())
    if white is None or not 0 <= low <= high <= white:
        white = _guessed_white(values.dtype.kind == "f", low, high)
    if values.dtype.kind == "f":
        return np.round(values * (255 / white)).astype(np.uint8)
    return (values.astype(np.int64) * 256 // (int(white) + 1)).astype(np.uint8)  # 16 bits: the high byte


def _guessed_white(real: bool, low: float, high: float) -> float:
    """1 for real numbers up to 1; for whole ones, white of the fewest bits that cameras use and the values fit."""
    if real and 0 <= low <= high <= 1:
        warnings.warn("gray of real numbers, taken to reach from 0 to 1", ImageNote, stacklevel=2)
        return 1.0
    bits = next((bits for bits in DEEP_BITS if high < 2**bits), None)
    if real or low < 0 or bits is None:
        raise UnreadableImage(f"its gray values, {low:g} to {high:g}, have no known range of brightness")
    if bits < DEEP_BITS[-1]:
        warnings.warn(f"gray that uses {bits} of 16 bits, white taken to be {2**bits - 1}", ImageNote, stacklevel=2)
    return float(2**bits - 1)


def _reason(error: Exception, data: bytes) -> str:
    if not isinstance(error, UnidentifiedImageError):
        return f"damaged or truncated ({kind_and_reason(error)})"
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and "HEIF" not in READABLE:
        return f"a HEIC image; {install('heif')}"
    return f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
