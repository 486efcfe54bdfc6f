"""Blocks of heads side by side on a processor's cores.

An operation on a block takes a tenth of a millisecond, and threads that share one meet at its end. Threads that sleep
until then (pipeline/limits.py) wake too late: with two of them a step of the default took twice as long as with one.
So every block is computed by one thread, and the threads meet twice a step.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from threading import Barrier
from typing import Any, TypeVar

import torch

from temi.pipeline.device import torch_threads

Result = TypeVar("Result")


class Lanes:
    """As many threads as `blocks` can use of those that torch has; how many they are changes no result.

    Parameters
    ----------
    blocks : pieces of work at a time
    large : whether operations on one are long enough to be shared by the threads that are left (last bits may change)
    """

    def __init__(self, blocks: int, large: bool) -> None:
        threads = torch.get_num_threads()
        self.count = min(blocks, threads)
        self.threads = threads // self.count if large else 1
        self._pool = ThreadPoolExecutor(self.count) if self.count > 1 else None
        if self._pool is not None:
            started = Barrier(self.count)
            with torch_threads(self.threads):  # a thread keeps the number that it first asks for
                list(self._pool.map(lambda _: (torch.get_num_threads(), started.wait()), range(self.count)))

    def own_threads(self) -> AbstractContextManager[None]:
        """Inside, operations between the blocks are shared by as many threads as those on a block."""
        return torch_threads(self.threads)

    def each(self, work: Callable[..., Result], *columns: Iterable[Any]) -> list[Result]:
        """`work` of the first of all columns, of the second, ...: in order, without gradients."""
        if self._pool is None:
            return list(map(work, *columns))
        return list(self._pool.map(partial(_without_gradients, work), *columns))


@torch.no_grad()
def _without_gradients(work: Callable[..., Result], *arguments: Any) -> Result:
    return work(*arguments)
