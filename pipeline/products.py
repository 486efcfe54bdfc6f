"""Products of float32 matrices on a processor, by the faster of the two libraries that torch brings along.

torch.mm calls the BLAS that torch was built with, MKL in the usual wheels, whose kernels for processors that are not
Intel's are slow: on an EPYC with AVX-512 it does 104 GFLOP/s a core and oneDNN, in the same torch, 245; on one with
AVX2 they are equal. Which it is here is measured once a process, in some hundredths of a second, when first asked for.
The environment variable TEMI_PRODUCTS (auto, blas, onednn) settles it instead.

The choice changes the last bits of a result, so it stands in what is kept and in a run's environment.json.
"""

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from temi.pipeline.errors import UserError
from temi.pipeline.torch_private import onednn_linear

Library = Literal["blas", "onednn"]
CHOICE = "TEMI_PRODUCTS"
FASTER = 1.3  # times as fast oneDNN must be: nearer to 1 the choice, and with it the last bits, would change by chance
SIDE, ROUNDS = 640, 5  # of the products that are timed: 5 ms each at 100 GFLOP/s


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """The matrix a b. No gradient flows through it where oneDNN computes it."""
    if _plain(a):
        return torch.mm(a, b)
    return onednn_linear(a, b.mT)


def batched_product(a: Float[Tensor, "G n k"], b: Float[Tensor, "G k m"]) -> Float[Tensor, "G n m"]:
    """The same for every pair of matrices."""
    if _plain(a):
        return torch.bmm(a, b)
    found = a.new_empty(len(a), a.shape[1], b.shape[2])
    for own, left, right in zip(found, a, b, strict=True):
        own.copy_(onednn_linear(left, right.mT))
    return found


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
    return _faster() if there else "blas"


def _faster() -> Library:
    a, b = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    blas, onednn = best_of([lambda: torch.mm(a, b), lambda: onednn_linear(a, b.mT)])
    return "onednn" if blas > FASTER * onednn else "blas"


def best_of(calls: list[Callable[[], Tensor]]) -> list[float]:
    """Seconds of each call, the least of ROUNDS in turn: what else the machine does only adds to them."""
    seconds = [[_seconds(call) for call in calls] for _ in range(ROUNDS + 1)]
    return [min(own) for own in zip(*seconds[1:], strict=True)]  # a first call makes its kernel


def _seconds(call: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
