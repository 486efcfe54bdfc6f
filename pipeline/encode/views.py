"""Augmented views: random resized crop, flip, turn, color jitter. A view depends on (seed, row, view) alone.

Random numbers come from the raw output of PCG64, which numpy promises never to change, and not from a sampling
function, which it may improve: a cache continued years later gets the same views.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

RATIO = (3 / 4, 4 / 3)  # width : height of a crop before it is resized
GRAY = (0.2989, 0.587, 0.114)  # torchvision's luma weights


class View(NamedTuple):
    """Parameters of one view, independent of the size of its image; the first four are uniform in [0, 1)."""

    area: float
    ratio: float
    top: float
    left: float
    flip: bool
    jitter: tuple[float, float, float]  # factors of brightness, contrast, saturation; 1 changes nothing
    turns: int  # by 90 degrees


@dataclass(frozen=True)
class ViewPolicy:
    """How views are drawn; see EmbedConfig."""

    count: int
    seed: int
    crop_scale: tuple[float, float]
    flip: float
    jitter: float
    turn: float = 0.0
    first: int = 0  # view to begin at: those before it, and the images themselves, are embedded already

    def describe(self) -> dict[str, Any]:
        """What changes the numbers besides seed and count, as JSON for the fingerprint; {} without views."""
        settings = {"crop_ratio": RATIO, **asdict(self)}
        untold = {"count", "seed", "first"}
        if not self.turn:
            untold.add("turn")  # a cache of version 0.1 goes on: its views could not be turned
        return {key: value for key, value in settings.items() if key not in untold} if self.count else {}

    @property
    def originals(self) -> int:
        """1 where the images themselves are embedded, before their views."""
        return int(self.first == 0)

    @property
    def passes(self) -> int:
        """How often an image is embedded: P."""
        return self.originals + self.count - self.first

    def draw(self, row: int, view: int) -> View:
        """Parameters of view `view` of row `row`."""
        raw = np.random.PCG64([self.seed, row, view]).random_raw(9)
        area, ratio, top, left, flip, *jitter, turn = ((raw >> 11) * 2.0**-53).tolist()
        brightness, contrast, saturation = (1 + self.jitter * (2 * value - 1) for value in jitter)
        turns = 1 + int(3 * turn / self.turn) if turn < self.turn else 0
        return View(area, ratio, top, left, flip < self.flip, (brightness, contrast, saturation), turns)

    def box(self, view: View, height: int, width: int) -> tuple[int, int, int, int]:
        """Crop (top, left, height, width) in an image: area uniform in `crop_scale`, log-uniform ratio, cut to fit."""
        low, high = self.crop_scale
        area = height * width * (low + view.area * (high - low))
        ratio = math.exp(math.log(RATIO[0]) + view.ratio * math.log(RATIO[1] / RATIO[0]))
        crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
        crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
        top = int(view.top * (height - crop_height + 1))
        left = int(view.left * (width - crop_width + 1))
        return top, left, crop_height, crop_width


def jitter(pixels: Float[Tensor, "B 3 H W"], factors: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 H W"]:
    """Brightness, contrast, saturation of each image by its own factors; values in [0, 1].

    The formulas of torchvision.transforms.v2.functional.adjust_*, which take one factor for a whole batch.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    pixels = (pixels * brightness).clamp_(0, 1)  # from here in place: passes over memory are what this costs
    mean = _gray(pixels).mean(dim=(1, 2, 3), keepdim=True)
    pixels = pixels.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 1)
    gray = _gray(pixels).mul_(1 - saturation)
    return pixels.mul_(saturation).add_(gray).clamp_(0, 1)


def _gray(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.split(1, dim=1)  # type: ignore[no-untyped-call]
    gray: Tensor = (red * GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])
    return gray
