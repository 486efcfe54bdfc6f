"""Any vision encoder of transformers, by hub id or local folder."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbone import DTYPES, Backbone, digest_files
from temi.pipeline.encode.preprocessing import Preprocessing, from_processor
from temi.pipeline.errors import UserError, in_a_line
from temi.pipeline.network import cannot_load, hub_answers, unreachable


def hugging_face(config: EmbedConfig, device: torch.device, precision: str) -> Backbone:
    """Any vision encoder of transformers with a `last_hidden_state`, by hub id or local folder.

    The id is resolved to a commit once, and everything is loaded from that commit. Only safetensors are read and no
    code of the model's author is run.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    folder = _local_folder(config.backbone)
    offline = folder is None and not hub_answers()
    where: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False, "local_files_only": offline}
    try:
        settings = AutoConfig.from_pretrained(config.backbone, **where)
        where["revision"] = getattr(settings, "_commit_hash", None)
        processor = AutoImageProcessor.from_pretrained(config.backbone, **where)
        model = AutoModel.from_pretrained(config.backbone, use_safetensors=True, dtype=torch.float32, **where)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(_cannot_load(config.backbone, folder, error, offline)) from None
    vision = getattr(settings, "vision_config", settings)
    model = getattr(model, "vision_model", model)  # the image half of CLIP, SigLIP and their like
    model.eval().requires_grad_(False).to(device)
    preprocessing = from_processor(processor, config.backbone).at(config.image_size)
    prefix, width = _layout(model, vision, preprocessing, device, config)
    if cast := device.type == "cuda" and precision != "fp32":
        model.to(DTYPES[precision])
    return Backbone(
        name=f"{settings.model_type} (local folder)" if folder else config.backbone,
        revision=digest_files(weight_files(folder)) if folder else str(where["revision"]),
        pooling=config.pooling,
        precision=precision,
        cast=cast,
        dim=2 * width if config.pooling == "cls+mean" else width,
        preprocessing=preprocessing,
        device=device,
        encode=lambda pixels: pool(_tokens(model, pixels), config.pooling, prefix),
    )


def pool(tokens: Float[Tensor, "B T W"], pooling: str, prefix: int) -> Float[Tensor, "B D"]:
    """One vector per image: the cls token, the mean of the patch tokens (without the first `prefix`), or both."""
    if pooling == "cls":
        return tokens[:, 0]
    mean = tokens[:, prefix:].float().mean(dim=1)
    return mean if pooling == "mean" else torch.cat([tokens[:, 0].float(), mean], dim=1)


def _tokens(model: Any, pixels: Tensor) -> Tensor:
    """The last hidden state as (B, T, W); a convolutional encoder's (B, W, h, w) map counts as h * w patch tokens."""
    state: Tensor = model(pixel_values=pixels).last_hidden_state
    return state if state.ndim == 3 else state.flatten(2).transpose(1, 2)


def _layout(
    model: Any, settings: Any, preprocessing: Preprocessing, device: torch.device, config: EmbedConfig
) -> tuple[int, int]:
    """(number of tokens before the patches, width), seen on one image of noise; refuses what cannot be embedded."""
    noise = torch.rand(1, 3, *preprocessing.crop, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.inference_mode():
            tokens, again = _tokens(model, noise), _tokens(model, noise)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{config.backbone} is not an image encoder with a last_hidden_state ({error})") from None
    if not torch.allclose(tokens, again, rtol=1e-3, atol=1e-4):
        raise UserError(f"{config.backbone} returns another result each time (masking?); use another backbone")
    prefix = max(0, tokens.shape[1] - _patches(settings, preprocessing, tokens.shape[1]))
    if prefix == 0 and config.pooling != "mean":
        raise UserError(f"{config.backbone} has no cls token; use embed.pooling=mean")
    return prefix, tokens.shape[2]


def _patches(settings: Any, preprocessing: Preprocessing, tokens: int) -> int:
    patch = getattr(settings, "patch_size", None)
    if not isinstance(patch, int):
        return tokens
    height, width = preprocessing.crop
    return (height // patch) * (width // patch)


def _local_folder(name: str) -> Path | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"backbone folder {name} does not exist; give a folder made by save_pretrained, or a hub id")
    return None


def weight_files(folder: str | Path) -> list[Path]:
    """The files of a local folder whose digest is the revision of its weights."""
    folder = Path(folder).expanduser()
    return [folder / "config.json", *sorted(folder.glob("*.safetensors"))]


def _cannot_load(name: str, folder: Path | None, error: Exception, offline: bool) -> str:
    reason = (offline and unreachable(name)) or in_a_line(error)
    if folder is not None:
        return f"backbone folder {name} cannot be loaded ({reason}); it needs config, image processor and safetensors"
    return cannot_load(name, reason)
