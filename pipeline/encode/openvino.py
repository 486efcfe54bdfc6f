"""A backbone through OpenVINO: the torch module is traced, converted, checked against torch and kept on disk.

On x86 CPUs OpenVINO computes convolutions and products of matrices faster than torch (benchmarks/embed.md). It computes
several batches at once, each in few threads, so that hardly a thread waits for others.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from queue import SimpleQueue
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from temi.pipeline.encode.backbone import Backbone
from temi.pipeline.encode.conversions import Conversions, Identity
from temi.pipeline.errors import kind_and_reason

NAMES = {"fp32": "f32", "bf16": "bf16"}
# Relative distance from torch that a conversion may have on an image of noise. In fp32, 1e-5 was the most seen.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}


class CannotConvert(Exception):
    """OpenVINO does not compute this backbone; the message says why, in a few words."""


@dataclass(frozen=True)
class OpenVinoBackbone(Backbone):
    """A backbone whose `encode` takes pixels in [0, 1] and normalizes them itself."""

    version: str = ""

    @property
    def arithmetic(self) -> str:
        """Precision, engine and its version: each changes the last bits of a few embeddings in a hundred."""
        return f"{self.precision}, openvino {self.version}"

    def __call__(self, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B D"]:
        return self.encode(pixels)


def through_openvino(backbone: Backbone) -> OpenVinoBackbone:
    """`backbone` computed by OpenVINO; the torch module is let go.

    Raises
    ------
    CannotConvert
        The processor lacks the precision, or the module cannot be traced, converted, or gives other numbers.
    """
    ov = _import()
    core, version = _core(ov), ov.__version__.partition("-")[0]
    if backbone.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise CannotConvert("this processor has no bf16 instructions, and fp32 is faster on it (embed.precision=fp32)")
    network = _kept(core, backbone, version) or _converted(ov, core, backbone, version)
    settings = {field.name: getattr(backbone, field.name) for field in fields(backbone)}
    return OpenVinoBackbone(**settings | {"encode": network, "lanes": network.lanes}, version=version)


class Network:
    """A compiled model: pixels (B, 3, h, w) in [0, 1] -> (B, D), from any thread."""

    def __init__(self, compiled: Any) -> None:
        self.lanes = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.lanes):
            self._idle.put(compiled.create_infer_request())

    def __call__(self, pixels: Tensor) -> Tensor:
        request = self._idle.get()
        try:
            (result,) = request.infer([pixels.contiguous().numpy()], share_inputs=True).values()
            return torch.from_numpy(result)
        finally:
            self._idle.put(request)


def _import() -> Any:
    """OpenVINO, without the package by which it reports each import and conversion to its maker."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: cannot be imported
    try:
        import openvino
    except ImportError as error:
        raise CannotConvert(f"openvino cannot be imported ({kind_and_reason(error)})") from None
    return openvino


@cache
def _core(ov: Any) -> Any:
    """The only one of this process, and never let go.

    The first network that a core compiles gives its thread a stack for signal handlers, and the core takes that memory
    with it. It restores the stack of before only on that thread, and of two cores only if the second goes first;
    else the next signal that Python handles (Ctrl-C, a child that ended) finds no stack and kills the process.
    Seen in OpenVINO 2026.4.1.
    """
    return ov.Core()


def _kept(core: Any, backbone: Backbone, version: str) -> Network | None:
    """The network of a conversion made earlier, if there is one and it still agrees with torch."""
    path = Conversions().find(_identity(backbone, version))
    if path is None:
        return None
    try:
        network = _compile(core, path, backbone)
    except Exception:  # a damaged file, in whatever way: convert again
        return None
    return network if _apart(network, backbone) <= TOLERANCE[backbone.precision] else None


def _converted(ov: Any, core: Any, backbone: Backbone, version: str) -> Network:
    try:
        model = _convert(ov, backbone)
        network = _compile(core, model, backbone)
        apart = _apart(network, backbone)
    except Exception as error:  # tracing runs the model's own code, and conversion has no error of its own
        raise CannotConvert(f"the conversion failed ({kind_and_reason(error)})") from None
    if not apart <= TOLERANCE[backbone.precision]:
        raise CannotConvert(f"the converted network differs from torch's by {apart:.1%} on a test image")
    Conversions().keep(_identity(backbone, version), lambda path: ov.save_model(model, path, compress_to_fp16=False))
    return network


class _Whole(torch.nn.Module):
    """Normalization and encoder as one module, so that OpenVINO fuses them."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.normalize: Callable[[Tensor], Tensor] = backbone.preprocessing.normalize
        self.encode = backbone.encode

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode(self.normalize(pixels)).float()


def _convert(ov: Any, backbone: Backbone) -> Any:
    """As an OpenVINO model of any batch size; traced here because OpenVINO traces several times over (11 s, not 3)."""
    pixels = _noise(backbone, 2)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of branches that depend on sizes, which are fixed here
        traced = torch.jit.trace(_Whole(backbone).eval(), pixels, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        return ov.convert_model(traced, example_input=pixels, input=[-1, *pixels.shape[1:]])


def _compile(core: Any, model: Any, backbone: Backbone) -> Network:
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": NAMES[backbone.precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # so that OMP_NUM_THREADS holds here too
        "ENABLE_CPU_PINNING": False,  # processes that decode share these cores
    }
    return Network(core.compile_model(model, "CPU", settings))


def _apart(network: Network, backbone: Backbone) -> float:
    """Relative distance from torch's fp32 on one image: another batch than the traced one, so its size is free."""
    pixels = _noise(backbone, 1)
    with torch.inference_mode():
        expected = _Whole(backbone)(pixels)
    found = network(pixels)
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).norm() / expected.norm())


def _noise(backbone: Backbone, count: int) -> Tensor:
    return torch.rand(count, 3, *backbone.preprocessing.crop, generator=torch.Generator().manual_seed(0))


def _identity(backbone: Backbone, version: str) -> Identity:
    made = backbone.preprocessing
    pixels = made.crop, made.rescale, made.mean, made.std
    return Identity(backbone.name, backbone.revision, backbone.pooling, pixels, (version, torch.__version__))
