"""One run by several processes of torchrun: each takes its part of every batch.

Rank 0 is the program as it always is: it mines, starts, writes, and ends. The others follow it: they wait to be told of
a pass, load the same data, take over the state of rank 0, and step beside it. Means over the batch that enter a loss,
and the gradients, are averaged over the processes, so all of them hold the same heads after every step.

A process that fails ends with its error, and torchrun ends the others.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from temi.cache.words import counted
from temi.pipeline.config import Config
from temi.pipeline.device import pick_device, torchrun_rank
from temi.pipeline.errors import UserError
from temi.pipeline.features.constraints import Constraints
from temi.pipeline.heads.bank import Place

PREPARATION = timedelta(days=1)  # how long the others wait while rank 0 mines and cuts
STEP = timedelta(minutes=10)  # and how long a step may wait for a process that is stuck


@dataclass(frozen=True)
class Task:
    """A pass that rank 0 begins: what the others need to load the same."""

    cache: Path
    configs: Sequence[Config]
    scratch: Path
    place: Place
    first_step: int
    told: Constraints | None = None


@dataclass(frozen=True)
class Processes:
    """The processes of a run; of one process, unless torchrun started more.

    Attributes
    ----------
    rank, size : this process, and how many there are
    group : what averages over the processes; its messages are between the training devices
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def check(self, config: Config, pairs: int) -> None:
        """Raise a UserError where a pass with `pairs` per batch cannot be divided among the processes."""
        if self.size == 1:
            return
        if pairs % self.size:
            raise UserError(
                f"a batch of {counted(pairs, 'pair')} does not divide among {self.size} processes; "
                f"set train.batch_size to a multiple of {self.size}, at most the number of images"
            )
        if config.heads.kind == "mlp-bn":
            raise UserError(
                "heads.kind = mlp-bn normalizes by the whole batch and trains in one process only; "
                "start it without torchrun, or use heads.kind=linear or published"
            )

    def average(self, tensor: Tensor) -> Tensor:
        """The mean of `tensor` over the processes."""
        if self.size > 1:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(tensor, group=self.group)
            tensor.div_(self.size)
        return tensor

    def average_all_(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over the processes into each of `tensors`, by one message."""
        if self.size > 1:
            flat = self.average(torch.cat([tensor.flatten() for tensor in tensors]))
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, mean in zip(tensors, parts, strict=True):
                tensor.copy_(mean.view_as(tensor))

    def take_over(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite `tensors` with those of rank 0."""
        if self.size > 1:
            for tensor in tensors.values():
                own = tensor.contiguous()
                dist.broadcast(own, src=0, group=self.group)
                tensor.copy_(own)

    def agree(self, decision: bool) -> bool:
        """What rank 0 decided."""
        return bool(self._tell(decision))

    def begin(self, task: Task) -> None:
        """On rank 0: tell the others of a pass."""
        self._tell(task)

    def hear(self) -> Task | None:
        """On the others: the next pass; None after the last. UserError where rank 0 ended without a word."""
        try:
            task: Task | None = self._tell(None)
        except RuntimeError:  # of gloo, whose connection is closed
            raise UserError("the first process has ended; what it printed says why") from None
        return task

    def _tell(self, message: object) -> Any:
        """`message` of rank 0, on every process."""
        if self.size == 1:
            return message
        box = [message]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def dismiss(self) -> None:
        """On rank 0: tell the others that there is no further pass."""
        if self.size > 1:
            self._tell(None)
            self.leave()

    def leave(self) -> None:
        """Part from the others."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = Processes()


@cache
def join() -> Processes:
    """The processes of this process, met once."""
    rank, size = torchrun_rank()
    if size == 1:
        return ALONE
    dist.init_process_group("gloo", timeout=PREPARATION)
    device = pick_device("auto")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Processes(rank, size, dist.new_group(backend=backend(), timeout=STEP))


def backend() -> str:
    """What carries the messages: between processors gloo, between GPUs NCCL, where each process here has its own."""
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return "cpu:gloo,cuda:nccl" if on_this_machine <= torch.cuda.device_count() else "gloo"
