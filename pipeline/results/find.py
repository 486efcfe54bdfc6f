"""Images of a run that look like a picture, or that words describe; encoders are loaded when they are first needed.

A picture goes through the encoder that the cache was made with. Words need a cache of CLIP, alone or joined: its cls
tokens become the features that CLIP compares with text, so no image is read again.
"""

from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int64, UInt8
from torch import Tensor

from temi.cache.fingerprint import SPACES
from temi.pipeline.errors import UserError
from temi.pipeline.images.arrays import ArrayImages
from temi.pipeline.images.decode import decode_image, picture
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.suggest import ImageTextModel, unit

if TYPE_CHECKING:  # encoders take seconds to import
    from temi.pipeline.encode.backbone import Backbone

MAX_PIXELS = 180_000_000  # of a picture to search by, as of one to embed
LONGEST = 300  # characters of a description


@dataclass(frozen=True)
class Space:
    """Columns of an embedding that one encoder made."""

    backbone: str
    revision: str
    pooling: str
    columns: slice

    @property
    def knows_words(self) -> bool:
        """Whether it is of CLIP, whose cls token (the first columns) is what its image features are made of."""
        return "clip" in self.backbone.lower() and self.pooling.startswith("cls")


class Finder:
    """Search in the images of a run.

    Parameters
    ----------
    run : the run, with its cache
    backbone : folder of the encoder's weights, where they are not from a hub
    device : auto, cpu, cuda or cuda:N
    """

    def __init__(self, run: FinishedRun, backbone: str | None = None, device: str = "auto") -> None:
        self.run, self.backbone, self.device = run, backbone, device
        self._loading = Lock()

    def like(self, data: bytes) -> Int64[np.ndarray, " n"]:
        """Places of the images in the assignments, those that look most like the picture in the file `data` first.

        Of joined caches CLIP's part decides.

        Raises
        ------
        UnreadableImage
            The file is no image that can be read.
        UserError
            The encoder cannot be loaded, or the run was trained on joined caches without CLIP.
        """
        pixels = decode_image(data, MAX_PIXELS)
        with self._loading:
            if len(self._spaces) > 1 and self.knows_words:
                judge, features = self._words
                return _order(features @ judge.pictures([picture(pixels)])[0])
            row = self._embedded(pixels)
        return _order(self._scaled @ unit(self.run.model.scaling(row).cpu())[0])

    def described(self, text: str) -> Int64[np.ndarray, " n"]:
        """Places of the images, those that CLIP finds closest to `text` first.

        Raises
        ------
        UserError
            No part of the cache is CLIP's, or CLIP cannot be loaded.
        """
        if not 0 < len(text.strip()) <= LONGEST:
            raise UserError(f"describe an image in 1 to {LONGEST} characters")
        with self._loading:
            judge, features = self._words
            return _order(features @ judge.text([text.strip()])[0])

    @property
    def knows_words(self) -> bool:
        """Whether `described` has a space to search in; loads nothing."""
        return any(space.knows_words for space in self._spaces)

    @cached_property
    def _spaces(self) -> list[Space]:
        made = self.run.model.made_from
        one = {"backbone": made.backbone, "revision": made.revision, "dim": self.run.rows.shape[1]}
        parts = made.preprocessing.get(SPACES, [one])
        ends = np.cumsum([0, *(part["dim"] for part in parts)]).tolist()
        return [
            Space(part["backbone"], part["revision"], pooling, slice(*ends[place : place + 2]))
            for place, (part, pooling) in enumerate(zip(parts, made.pooling.split(" + "), strict=True))
        ]

    def _embedded(self, pixels: UInt8[Tensor, "3 H W"]) -> Float16[Tensor, "1 D"]:
        """The picture as the cache would hold it."""
        from temi.pipeline.encode.forward import embed_rows, stored

        source = ArrayImages(pixels.permute(1, 2, 0).numpy()[None], np.full(1, -1, np.int32), (), {})
        [batch] = embed_rows(self._encoder, source, [range(1)])
        return torch.from_numpy(stored(batch.embedding, source.keys, 0, batch.failures))

    @cached_property
    def _encoder(self) -> "Backbone":
        from temi.pipeline.results.predict import load_recorded, recorded_settings

        return load_recorded(self.run, recorded_settings(self.run, self.backbone, self.device))

    @cached_property
    def _scaled(self) -> Float32[Tensor, "n D"]:
        return unit(torch.from_numpy(self.run.scaled))

    @cached_property
    def _words(self) -> tuple[ImageTextModel, Float[Tensor, "n E"]]:
        """CLIP and its features of the images, from their cached tokens."""
        space = next((space for space in self._spaces if space.knows_words), None)
        if space is None:
            raise UserError(
                f"words find nothing in {self.run.folder}: no part of its cache is CLIP's; embed the images with one, "
                "with pooling cls, and `temi cache join` the two"
            )
        judge = ImageTextModel(*self._weights(space))
        return judge, _features(judge.model, torch.from_numpy(self.run.embeddings[:, space.columns]), space)

    def _weights(self, space: Space) -> tuple[str, str | None]:
        """Id or folder of the weights, and their commit."""
        from temi.pipeline.encode.backbone import digest_files
        from temi.pipeline.encode.hugging_face import weight_files
        from temi.pipeline.results.predict import LOCAL

        if not space.backbone.endswith(LOCAL):
            return self.backbone or space.backbone, None if self.backbone else space.revision
        if self.backbone is None:
            raise UserError(f"{self.run.folder} was made with {space.backbone}; give that folder by --backbone FOLDER")
        if digest_files(weight_files(self.backbone)) != space.revision:
            raise UserError(f"{self.backbone} holds other weights than those that made the cache of {self.run.folder}")
        return self.backbone, None


@torch.inference_mode()
def _features(model: Any, tokens: Float[Tensor, "n D"], space: Space) -> Float[Tensor, "n E"]:
    """CLIP's image features of cls tokens, of unit length."""
    vision: Any = getattr(model, "vision_model", None)
    if not (hasattr(vision, "post_layernorm") and hasattr(model, "visual_projection")):
        raise UserError(f"{space.backbone} does not make its image features of a cls token; use a CLIP")
    width = model.visual_projection.in_features
    blocks = torch.split(tokens[:, :width], 8192)
    return torch.cat([unit(model.visual_projection(vision.post_layernorm(block.float()))) for block in blocks])


def _order(similarity: Float[Tensor, " n"]) -> Int64[np.ndarray, " n"]:
    return np.argsort(-similarity.numpy(force=True), kind="stable")
