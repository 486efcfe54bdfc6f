"""A CUDA graph of the training step: its hundreds of kernels start as one.

The step of a few small heads is over sooner than the host can launch its kernels one by one. A graph is recorded once
and replayed after that: the same kernels on the same memory, so what changes from step to step must lie in tensors.
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)
"""

from collections.abc import Callable

import torch

WARM_UP = 3  # calls before the recording, in which libraries choose kernels and allocate work space


class Replay:
    """`function` as a CUDA graph, recorded at its fourth call.

    Parameters
    ----------
    function : reads and writes tensors that stay where they are, and never waits for the device
    """

    def __init__(self, function: Callable[[], None]):
        self._function, self._calls = function, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        """What `function` does."""
        self._calls += 1
        if self._calls <= WARM_UP:  # on a stream of its own, as recording will be
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._function()
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Of this thread alone: another one may be copying rows of the next batch.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._function()
        self._graph.replay()  # recording computes nothing
