"""Which device computes, and how a processor's memory is handed out."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from temi.pipeline.errors import UserError


def pick_device(name: str) -> torch.device:
    """`name` as a device; auto is the first GPU where there is one, and under torchrun that of LOCAL_RANK.

    Raises
    ------
    UserError
        No such device here.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if (local := os.environ.get("LOCAL_RANK")) is None:
            return torch.device("cuda")
        return torch.device("cuda", int(local) % torch.cuda.device_count())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"device {name!r} is not available on this machine; use auto, cpu or cuda:N") from None
    return device


def torchrun_rank() -> tuple[int, int]:
    """(rank, number of processes) that torchrun gave this process; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Products of float32 matrices inside are in TF32 on a GPU: 10 bits of mantissa, as a cached embedding has.

    A step of 16 published heads on an H200 takes half the time (benchmarks/speed.md). Neighbors, cuts and
    assignments are computed outside, in full float32.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside, `count` threads share an operation of torch that this thread, or one that it starts, asks for."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """Inside, the C library keeps freed memory for the next step of a processor instead of returning it to the system.

    A step frees and asks again for the same megabytes; returned, each page of them costs a fault when it is next
    touched: a quarter of the time of a step of 16 linear heads. Nothing happens where the library is not glibc.
    """
    if device.type == "cpu":
        _set_thresholds(trim=2**30, mapped=2**25)
    try:
        yield
    finally:
        return_freed_memory()


def return_freed_memory() -> None:
    """Return to the system what the C library has kept until now, and from now on blocks of 4 MiB once they are freed.

    Left alone it learns to keep blocks of up to 32 MiB, and then often misses one that torch asks for again (glibc bug
    14581): a search among 30,000 rows of 512 took 265 MiB instead of 150 to 190.
    """
    _set_thresholds(trim=2**22, mapped=2**22)
    _c_function("malloc_trim")(0)


def _set_thresholds(trim: int, mapped: int) -> None:
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
    mallopt = _c_function("mallopt")
    mallopt(trim_threshold, trim)
    mallopt(mmap_threshold, mapped)


def _c_function(name: str) -> Callable[..., object]:
    """A function of the C library; one that does nothing where it has none of that name."""
    try:
        function: Callable[..., object] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return lambda *_: None
    return function
