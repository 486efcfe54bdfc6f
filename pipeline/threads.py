"""Work of numpy and of compiled loops in several threads, as many as torch has."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")


def threads_for(count: int) -> int:
    """How many of `count` are made at a time."""
    return min(count, torch.get_num_threads())


def in_threads(make: Callable[..., Made], *arguments: Iterable[Any]) -> Iterator[Made]:
    """`map`, several at a time; what is made comes in order."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(make, *arguments)
