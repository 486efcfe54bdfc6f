"""Names proposed for clusters by a model that knows images and words, such as CLIP. It names nothing by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from temi.cache.files import os_errors
from temi.pipeline.errors import UserError, in_a_line
from temi.pipeline.images import ImageSource, UnreadableImage
from temi.pipeline.images.decode import picture
from temi.pipeline.network import hub_answers
from temi.pipeline.progress import Progress
from temi.pipeline.results.corrections import REMOVED
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import check_name

LOOKED_AT = 16  # images of a cluster: its most confident ones
BATCH = 256  # words at once
PROMPT = "a photo of a {}".format


@dataclass(frozen=True)
class Suggestion:
    """A word for a cluster and the next best one, each with its probability among all words, mean over images."""

    cluster: int
    name: str
    score: float
    runner_up: str
    runner_up_score: float


def suggest_names(
    run: FinishedRun, model: str, words: Path | None = None, source: str | None = None
) -> list[Suggestion]:
    """A word for every cluster that has images and no name; no word twice, and none that is a name already.

    Parameters
    ----------
    model : Hugging Face id or folder of CLIP, SigLIP or the like
    words : a file with a word or phrase a line; None: the 1,000 classes of ImageNet
    source : where the images are, if they moved

    Raises
    ------
    UserError
        The model, the words or the images cannot be read, or there are fewer words than clusters to name.
    """
    vocabulary = [word for word in _words(words) if word not in run.names]
    table = run.assignments
    clusters = [c for c in np.unique(table["cluster"]).tolist() if c != REMOVED and not run.names[c]]
    if len(vocabulary) < max(2, len(clusters)):
        raise UserError(
            f"words to choose from: {len(vocabulary)}, clusters without a name: {len(clusters)}; give more words"
        )
    if not clusters:
        return []
    images, judge = run.images(source), ImageTextModel(model)
    text, likely = judge.words(vocabulary), np.empty((len(clusters), len(vocabulary)))
    with Progress("looking at clusters", len(clusters), "cluster") as progress:
        for place, cluster in enumerate(clusters):
            rows = table[table["cluster"] == cluster].sort_values("confidence", ascending=False, kind="stable")["row"]
            likely[place] = judge.probabilities(_pictures(images, rows.tolist()), text).mean(0).numpy()
            progress.advance()
    return [_suggestion(clusters[place], word, likely[place], vocabulary) for place, word in _one_to_one(likely)]


def _one_to_one(likely: Float[np.ndarray, "C W"]) -> list[tuple[int, int]]:
    """A word for each cluster, no word twice, of the largest product of probabilities."""
    one, other = linear_sum_assignment(np.log(np.maximum(likely, 1e-30)), maximize=True)
    return list(zip(one.tolist(), other.tolist(), strict=True))


def _suggestion(cluster: int, word: int, likely: Float[np.ndarray, " W"], vocabulary: Sequence[str]) -> Suggestion:
    second = next(int(other) for other in np.argsort(-likely, kind="stable") if other != word)
    return Suggestion(cluster, vocabulary[word], float(likely[word]), vocabulary[second], float(likely[second]))


def _words(file: Path | None) -> list[str]:
    if file is None:
        from torchvision.models import EfficientNet_B0_Weights

        return list(dict.fromkeys(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]))
    try:
        with os_errors(file, "read"):
            lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; give a file with a word or phrase a line") from None
    return [check_name(word, file) for word in dict.fromkeys(line.strip() for line in lines) if word]


def _pictures(images: ImageSource, rows: Sequence[int]) -> list[Image.Image]:
    """The first LOOKED_AT of these images that can be read."""
    found: list[Image.Image] = []
    for row in rows:
        try:
            found.append(picture(images.read(row)))
        except UnreadableImage:
            continue
        if len(found) == LOOKED_AT:
            break
    if not found:
        raise UserError("the images of a cluster cannot be read any more; restore them, or say where they are now")
    return found


class ImageTextModel:
    """A model of transformers that puts images and words into one space; only safetensors are read, no code is run."""

    def __init__(self, name: str, revision: str | None = None) -> None:
        from transformers import AutoModel, AutoProcessor

        local = Path(name).expanduser().is_dir()
        offline = not local and not hub_answers()
        where: dict[str, Any] = {"revision": revision, "trust_remote_code": False, "local_files_only": offline}
        try:
            self.processor = AutoProcessor.from_pretrained(name, **where)
            self.model = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **where).eval()
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = in_a_line(error, 160)
            raise UserError(f"{name} cannot be loaded as a model of images and words ({reason})") from None
        if not (hasattr(self.model, "get_text_features") and hasattr(self.model, "logit_scale")):
            raise UserError(f"{name} knows no words; give a model such as openai/clip-vit-base-patch32")

    def words(self, vocabulary: Sequence[str]) -> Float[Tensor, "W E"]:
        """Unit vectors of "a photo of a WORD"."""
        return self.text([PROMPT(word) for word in vocabulary])

    @torch.inference_mode()
    def text(self, lines: Sequence[str]) -> Float[Tensor, "W E"]:
        """Unit vectors of lines of text."""
        parts = []
        for first in range(0, len(lines), BATCH):
            tokens = self.processor(
                text=list(lines[first : first + BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            parts.append(unit(self.model.get_text_features(**tokens)))
        return torch.cat(parts)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n E"]:
        """Unit vectors of pictures."""
        pixels = self.processor(images=list(pictures), return_tensors="pt")
        return unit(self.model.get_image_features(**pixels))

    @torch.inference_mode()
    def probabilities(self, pictures: Sequence[Image.Image], text: Float[Tensor, "W E"]) -> Float[Tensor, "n W"]:
        """Probability of every word for each picture."""
        cosine = self.pictures(pictures) @ text.mT
        likely: Float[Tensor, "n W"] = (self.model.logit_scale.exp() * cosine).softmax(-1)
        return likely


def unit(features: Any) -> Tensor:
    """Features of unit length; newer versions of transformers wrap them."""
    tensor: Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(tensor, dim=-1)
