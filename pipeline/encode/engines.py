"""What computes a backbone: torch, or on a CPU OpenVINO, converted from the torch module."""

import platform
import sys
from importlib.util import find_spec

from temi.pipeline.encode.backbone import Backbone
from temi.pipeline.errors import UserError
from temi.pipeline.extras import install

X86 = ("x86_64", "amd64")  # where OpenVINO was measured against torch


def with_engine(backbone: Backbone, engine: str) -> Backbone:
    """`backbone` computed by `engine`: torch, openvino, or auto, which is OpenVINO on an x86 CPU where it is installed.

    Where auto would take OpenVINO and cannot, torch computes and a line on stderr says why.

    Raises
    ------
    UserError
        `engine` is openvino, which cannot compute this.
    """
    if engine == "torch" or (engine == "auto" and not _wanted(backbone)):
        return backbone
    obstacle = _obstacle(backbone)
    if obstacle is None:
        from temi.pipeline.encode.openvino import CannotConvert, through_openvino

        try:
            return through_openvino(backbone)
        except CannotConvert as error:
            obstacle = str(error)
    if engine == "openvino":
        raise UserError(f"embed.engine=openvino cannot run {backbone.name}: {obstacle}; use embed.engine=torch")
    print(f"embed: computed by torch, not OpenVINO: {obstacle}", file=sys.stderr)
    return backbone


def _wanted(backbone: Backbone) -> bool:
    """On other processors nothing was measured, and torch.compile was asked for."""
    return backbone.device.type == "cpu" and not backbone.compiled and platform.machine().lower() in X86


def _obstacle(backbone: Backbone) -> str | None:
    """Why OpenVINO cannot compute `backbone`, as far as that is known before it is tried."""
    if backbone.device.type != "cpu":
        return "it runs on the CPU"
    if backbone.compiled:
        return "embed.compile is torch's"
    if backbone.precision not in ("fp32", "bf16"):
        return f"it has no {backbone.precision}"
    if find_spec("openvino") is None:
        return f"openvino is not installed; {install('cpu')}"
    return None
