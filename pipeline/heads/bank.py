"""Where the bank of scaled embeddings lies, and the next batch, gathered from there while the device computes this one.

=======  ============================================================================================
device   in the memory of the training device
host     in the host's memory, where the device's does not hold it
disk     in a file that has no name and ends with the process, mapped: the system keeps of it what fits
=======  ============================================================================================

Batches are drawn from all rows in each of them, so where the bank lies changes no number.
"""

import mmap
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from temi.cache.files import nameless_memory

Place = Literal["device", "host", "disk"]


def empty_bank(
    shape: tuple[int, int], place: Place, device: torch.device, folder: Path | None
) -> tuple[Float[Tensor, "NV D"], mmap.mmap | None]:
    """Memory for a float32 bank, and the mapped file behind it where `place` is the disk; it is in `folder`,
    or where the system keeps temporary files.

    Raises
    ------
    CacheError
        The disk has no room for it.
    """
    if place != "disk":
        return torch.empty(shape, device=device if place == "device" else "cpu"), None
    size = shape[0] * shape[1] * torch.float32.itemsize
    memory = nameless_memory(folder, size, "keep the embeddings to train on in")
    memory.madvise(mmap.MADV_RANDOM)  # random access: turn off read-ahead (128 KiB per row)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape), memory


def bank_bytes(rows: int, views: int, width: int, k: int) -> int:
    """Memory of a bank of images with their views, and of the graph of their `k` neighbors."""
    return rows * (1 + views) * width * torch.float32.itemsize + rows * k * torch.int32.itemsize


class Prefetch:
    """Rows of a bank that is not on the training device, gathered in a thread: those of a batch during the one before.

    On a GPU they pass through pinned memory and a stream of their own, so that neither host nor device waits. From a
    `file`, all pages of a batch are asked of the disk at once: four times as fast as one after the other.
    """

    def __init__(self, bank: Float[Tensor, "NV D"], device: torch.device, file: mmap.mmap | None = None) -> None:
        self._bank, self._device, self._file = bank, device, file
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._asked: deque[tuple[Tensor, Future[Tensor]]] = deque()

    def ask(self, rows: Int64[Tensor, " M"]) -> None:
        """Begin to gather `rows`, which will be taken after those asked for before."""
        self._asked.append((rows, self._thread.submit(self._gather, rows)))

    def take(self, rows: Int64[Tensor, " M"]) -> Float[Tensor, "M D"]:
        """`rows` of the bank on the training device; at once, where they were asked for in time."""
        if not self._asked or self._asked[0][0] is not rows:
            self._asked.clear()
            self.ask(rows)
        gathered = self._asked.popleft()[1].result()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            gathered.record_stream(current)
        return gathered

    def _gather(self, rows: Int64[Tensor, " M"]) -> Float[Tensor, "M D"]:
        if self._file is not None:
            size = self._bank.shape[1] * self._bank.element_size()
            for start in (rows * size).tolist():
                page = start - start % mmap.PAGESIZE
                self._file.madvise(mmap.MADV_WILLNEED, page, start + size - page)
        if self._stream is None:
            return self._bank.index_select(0, rows)
        pinned = torch.empty(len(rows), self._bank.shape[1], pin_memory=True)  # kept by torch until the copy is done
        torch.index_select(self._bank, 0, rows, out=pinned)
        with torch.cuda.stream(self._stream):
            return pinned.to(self._device, non_blocking=True)
