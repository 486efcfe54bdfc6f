"""Frozen encoders by name: pixels in, one vector per image out.

A new backbone is one function in a file of its own that returns a Backbone, and one line of `_LOADERS` or, in a user's
own file, one `register_backbone`; docs/adding-a-backbone.md.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from temi.pipeline.config import EmbedConfig
from temi.pipeline.device import pick_device
from temi.pipeline.encode.backbone import DTYPES, Backbone, digest_files
from temi.pipeline.encode.efficientnet import LITE, efficientnet_lite
from temi.pipeline.encode.engines import with_engine
from temi.pipeline.encode.hugging_face import hugging_face
from temi.pipeline.errors import UserError, kind_and_reason
from temi.pipeline.plugins import plugin_of

__all__ = ["DTYPES", "Backbone", "compiled", "digest_files", "load_backbone", "register_backbone"]

PLUGIN = ", plugin sha256:"  # in a revision, before the digest of the file that a backbone comes from
Loader = Callable[[EmbedConfig, torch.device, str], Backbone]  # settings, device, precision -> the encoder

_LOADERS: dict[str, Loader] = dict.fromkeys(LITE, efficientnet_lite)


def register_backbone(name: str) -> Callable[[Loader], Loader]:
    """Decorator: from now on `embed.backbone=name` calls this function, instead of asking the model hub for `name`.

    Raises
    ------
    UserError
        The name is taken.
    """

    def register(load: Loader) -> Loader:
        if name in _LOADERS:
            raise UserError(f"a backbone named {name} is already registered; choose another name")
        _LOADERS[name] = load
        return load

    return register


def is_registered(name: str) -> bool:
    """Whether `name` is a backbone of the package or of a plugin that is loaded; others are asked of the model hub."""
    return name in _LOADERS


def load_backbone(config: EmbedConfig) -> Backbone:
    """The encoder that `config` names, on its device, ready to run.

    Raises
    ------
    UserError
        The model cannot be found, reached or loaded, or does not fit the pooling or the engine.
    """
    device = pick_device(config.device)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    load = _LOADERS.get(config.backbone, hugging_face)
    backbone = load(config, device, precision)
    if plugin := plugin_of(load):  # the file, not only its weights, makes the numbers
        backbone = replace(backbone, revision=f"{backbone.revision}{PLUGIN}{plugin.digest}")
    if config.compile:
        backbone = replace(backbone, encode=compiled(backbone.encode), compiled=True)
    return with_engine(backbone, config.engine)


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
            raise UserError(
                f"the backbone cannot be compiled ({kind_and_reason(error)}); install g++ (on a GPU also triton) or "
                "use embed.compile=false"
            ) from None

    return run
