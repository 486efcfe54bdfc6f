"""A CUDA graph of the training step: its hundreds of kernels start as one.

The step of a few small heads is over sooner than the host can launch its kernels one by one. A graph is recorded once
and replayed after that: the same kernels on the same memory, so what changes from step to step must lie in tensors.
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)
"""

import sys
import warnings
from collections.abc import Callable

import torch

from temi.pipeline.errors import UserError

WAITS = "note: the objective waits for the GPU in every step; without that (no .item(), no boolean index) it is faster"
WARM_UP = 3  # calls before the recording, in which libraries choose kernels and allocate work space


class Replay:
    """`function` as a CUDA graph, recorded at its fourth call; as it is, where it waits for the device.

    Parameters
    ----------
    function : reads and writes tensors that stay where they are; it waits, if at all, before it has written
    """

    def __init__(self, function: Callable[[], None]):
        self._function, self._calls = function, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._waits = False

    def __call__(self) -> None:
        """What `function` does."""
        self._calls += 1
        if self._waits or self._calls < WARM_UP:
            self._alongside(self._function)
            return
        if self._calls == WARM_UP:
            self._alongside(self._watched)
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Of this thread alone: another one may be copying rows of the next batch.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._function()
        self._graph.replay()  # recording computes nothing

    def _alongside(self, function: Callable[[], None]) -> None:
        """Call it on a stream of its own, as recording will be."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            function()
        torch.cuda.current_stream().wait_stream(self._stream)

    def _watched(self) -> None:
        """Call `function` and see whether it waits: a recording that fails leaves the allocator in disorder."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the mode a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            self._function()
        except (RuntimeError, UserError) as error:  # UserError: of a user's own loss
            if "synchronizing" not in str(error):
                raise
            self._waits = True
        finally:
            torch.cuda.set_sync_debug_mode("default")
        if self._waits:
            print(WAITS, file=sys.stderr)
            self._function()
