"""What stage one needs to know of a frozen encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from temi.cache.files import file_digest
from temi.pipeline.encode.preprocessing import Preprocessing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder on its device.

    Attributes
    ----------
    name, revision
        Which weights: an id and the commit it was resolved to, or a digest of the weights.
    encode
        Normalized pixels (B, 3, h, w) -> (B, D).
    precision
        Of the forward pass: fp32, bf16 or fp16.
    cast
        Whether the weights are in `precision`; otherwise autocast casts what gains by it. On an H200 that is 5/4 of
        autocast's speed for DINOv2-base.
    compiled
        Whether `encode` went through torch.compile, which changes the last bits of its results.
    lanes
        Batches that may be computed at once, each in a thread of its own.
    """

    name: str
    revision: str
    pooling: str
    precision: str
    dim: int
    preprocessing: Preprocessing
    device: torch.device
    encode: Callable[[Tensor], Tensor]
    cast: bool = False
    compiled: bool = False
    lanes: int = 1

    @property
    def arithmetic(self) -> str:
        """What rounds the numbers, for the fingerprint: the precision, "cast" and "compiled" where that is so."""
        return ", ".join([self.precision, *["cast"] * self.cast, *["compiled"] * self.compiled])

    @torch.inference_mode()
    def __call__(self, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B D"]:
        """Embed pixels in [0, 1], already resized and cropped, on `device`."""
        inputs = self.preprocessing.normalize(pixels).contiguous(memory_format=torch.channels_last)
        if self.cast:
            return self.encode(inputs.to(DTYPES[self.precision])).float()
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            return self.encode(inputs).float()


def digest_files(paths: list[Path]) -> str:
    """Of the bytes of `paths` in that order: the `revision` of weights that have no commit."""
    return f"xxh3:{file_digest(*paths)}"
