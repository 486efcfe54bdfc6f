"""From an image of any size to what an encoder expects: resize, center crop, normalize.

Resizing and cropping happen on uint8, image by image, where the image is decoded; normalizing happens in batch on the
device. Where a Hugging Face image processor does the same steps, the numbers are the same; one that resizes
in float (DINOv3) is met within one gray level.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from temi.pipeline.errors import UserError
from temi.pipeline.images.decode import DECODING
from temi.pipeline.images.source import UnreadableImage

# Pillow's numbers for its filters, as image processors store them.
INTERPOLATIONS = ("nearest-exact", "lanczos", "bilinear", "bicubic")
MAX_RESIZED = 64_000_000  # pixels; a strip of 1 x 10,000 pixels asks for more once its short side is 256
TOLERANCE = 2.5  # gray levels between this module and an image processor


@dataclass(frozen=True)
class Preprocessing:
    """Short side (or height and width) to `resize`, center crop to `crop`, then ``(x * rescale - mean) / std``."""

    resize: int | tuple[int, int]
    crop: tuple[int, int]  # height, width of what the encoder sees
    interpolation: str
    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def at(self, size: int | None) -> "Preprocessing":
        """The same for a `size` x `size` crop, resized in proportion; unchanged for None."""
        if size is None:
            return self
        short = self.resize if isinstance(self.resize, int) else min(self.resize)
        return replace(self, resize=round(short * size / min(self.crop)), crop=(size, size))

    def describe(self) -> dict[str, Any]:
        """All of it as JSON for the fingerprint."""
        return {
            "decoding": DECODING,
            "resize": self.resize if isinstance(self.resize, int) else list(self.resize),
            "crop": list(self.crop),
            "interpolation": f"{self.interpolation}, antialias, uint8",
            "rescale": self.rescale,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def fit(self, image: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "3 h w"]:
        """Resize and center crop; raises UnreadableImage for a strip too long to resize."""
        height, width = image.shape[-2:]
        size = self.resize
        if isinstance(size, int):
            short, long = min(height, width), max(height, width)
            if size * size * long > MAX_RESIZED * short:
                raise UnreadableImage(f"{width} x {height} pixels are too long a strip")
            new = int(size * long / short)
            size = (size, new) if height <= width else (new, size)
        return _center_crop(self.scale(image, size), self.crop)

    def scale(self, image: UInt8[Tensor, "3 H W"], size: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
        """Resize to exactly `size` (height, width)."""
        resized: Tensor = tv.resize(image, list(size), InterpolationMode(self.interpolation), antialias=True)
        return resized

    def normalize(self, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 h w"]:
        """Pixels in [0, 1] as the encoder's input."""
        scale = pixels.new_tensor([255 * self.rescale / std for std in self.std])
        shift = pixels.new_tensor([mean / std for mean, std in zip(self.mean, self.std, strict=True)])
        return torch.addcmul(-shift[:, None, None], pixels, scale[:, None, None])


def from_processor(processor: Any, name: str) -> Preprocessing:
    """The settings of a Hugging Face image processor, checked against what the processor itself returns.

    Raises
    ------
    UserError
        The processor does something besides resize, center crop, rescale and normalize.
    """
    try:
        preprocessing = _read_settings(processor)
        agrees = _gray_levels_apart(preprocessing, processor) <= TOLERANCE
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError):
        agrees = False
    if not agrees:
        raise UserError(
            f"the image processor of {name} ({type(processor).__name__}) does more than resize, center crop, rescale "
            "and normalize to one size; use a backbone whose preprocessor_config.json does just that"
        )
    return preprocessing


def _read_settings(processor: Any) -> Preprocessing:
    size, crop = dict(processor.size), dict(getattr(processor, "crop_size", None) or {})
    resize = size.get("shortest_edge") or (size["height"], size["width"])
    cropped = getattr(processor, "do_center_crop", False) and bool(crop)
    normalized = processor.do_normalize
    return Preprocessing(
        resize=resize,
        crop=(crop["height"], crop["width"]) if cropped else _pair(resize),
        interpolation=INTERPOLATIONS[int(processor.resample)],
        rescale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=_triple(processor.image_mean) if normalized else (0.0, 0.0, 0.0),
        std=_triple(processor.image_std) if normalized else (1.0, 1.0, 1.0),
    )


def _pair(size: Any) -> tuple[int, int]:
    height, width = size  # a lone shortest edge without a crop leaves images of many sizes: TypeError, refused above
    return int(height), int(width)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _gray_levels_apart(preprocessing: Preprocessing, processor: Any) -> float:
    """Largest difference on one image of noise, wider than high and of odd sides, in units of 1/255 before scaling."""
    image = np.random.default_rng(0).integers(0, 256, (311, 407, 3), np.uint8)
    theirs = torch.as_tensor(np.asarray(processor(images=image, return_tensors="np")["pixel_values"]))
    fitted = preprocessing.fit(torch.from_numpy(image).permute(2, 0, 1))
    ours = preprocessing.normalize(fitted[None].float() / 255)
    levels = torch.tensor(preprocessing.std)[:, None, None] / preprocessing.rescale
    return float(((ours - theirs) * levels).abs().max())


def _center_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle `size` of `image`, zeros where it is smaller; halves are rounded as image processors round them."""
    height, width = size
    missing_height, missing_width = max(0, height - image.shape[-2]), max(0, width - image.shape[-1])
    if missing_height or missing_width:
        padding = [missing_width // 2, missing_height // 2, (missing_width + 1) // 2, (missing_height + 1) // 2]
        image = tv.pad(image, padding)
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]
