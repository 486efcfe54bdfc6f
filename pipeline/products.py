"""Products of float32 matrices on a processor, by the faster of the two libraries that torch brings along.

torch.mm calls the BLAS that torch was built with, MKL in the usual wheels, whose kernels for processors that are not
Intel's are slow: on an EPYC with AVX-512 it does 104 GFLOP/s a core and oneDNN, in the same torch, 245; on one with
AVX2 they are equal (benchmarks/speed.md). So oneDNN multiplies where MKL meets an AMD processor with AVX-512. The two
are not timed against each other: on a busy machine the answer would change from process to process, and with it the
last bits of a run that goes on after a kill. The environment variable TEMI_PRODUCTS (auto, blas, onednn) settles it
instead.

The choice changes the last bits of a result, so it stands in what is kept and in a run's environment.json.
"""

import os
import platform
from functools import cache
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from temi.pipeline.errors import UserError
from temi.pipeline.torch_private import onednn_linear

Library = Literal["blas", "onednn"]
CHOICE = "TEMI_PRODUCTS"
PROCESSOR = Path("/proc/cpuinfo")  # of Linux


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """The matrix a b. No gradient flows through it where oneDNN computes it."""
    if _plain(a):
        return torch.mm(a, b)
    return onednn_linear(a, _dense(b.mT))


def batched_product(a: Float[Tensor, "G n k"], b: Float[Tensor, "G k m"]) -> Float[Tensor, "G n m"]:
    """The same for every pair of matrices."""
    if _plain(a):
        return torch.bmm(a, b)
    found = a.new_empty(len(a), a.shape[1], b.shape[2])
    for own, left, right in zip(found, a, b, strict=True):
        own.copy_(onednn_linear(left, _dense(right.mT)))
    return found


def _dense(a: Tensor) -> Tensor:
    """Without gaps in memory: by every second row oneDNN multiplies in plain loops, a thousand times as long."""
    return a if a.is_contiguous() or a.mT.is_contiguous() else a.contiguous()


def _plain(a: Tensor) -> bool:
    """Whether this is not oneDNN's: another device or type, a graph that is exported, or a processor it is slow on."""
    here = a.device.type == "cpu" and a.dtype == torch.float32
    return not here or torch.compiler.is_compiling() or library() == "blas"


def arithmetic(device: torch.device) -> str:
    """What the last bits of a result computed on `device` depend on: part of the recipe of what is kept."""
    return "cpu onednn" if device.type == "cpu" and library() == "onednn" else device.type


@cache
def library() -> Library:
    """Whose products are used in this process.

    Raises
    ------
    UserError
        TEMI_PRODUCTS is none of its three values, or asks for oneDNN in a torch without it.
    """
    asked, there = os.environ.get(CHOICE, "auto"), torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if asked not in ("auto", "blas", "onednn"):
        raise UserError(f"{CHOICE}={asked} is not a library of products; set it to auto, blas or onednn")
    if asked == "onednn" and not there:
        raise UserError(f"{CHOICE}=onednn, and this torch was built without it; unset {CHOICE}")
    if asked != "auto":
        return cast(Library, asked)
    return "onednn" if there and _blas_is_slow() else "blas"


def _blas_is_slow() -> bool:
    """Whether torch's BLAS is MKL and the processor an AMD one with AVX-512."""
    processor = PROCESSOR.read_text() if PROCESSOR.exists() else platform.processor()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkl.is_available() and "AuthenticAMD" in processor  # type: ignore[no-untyped-call]
