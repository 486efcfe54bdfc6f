"""Which GPU a process takes, and what carries messages between them; no GPU is needed."""

import pytest
import torch

from temi.pipeline.device import pick_device
from temi.pipeline.heads.processes import backend


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("rank", "device"), [(None, "cuda"), ("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")])
def test_a_process_of_torchrun_takes_the_gpu_of_its_rank(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, device: str
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)  # torch.cuda.set_device takes no device without a number
    assert pick_device("auto") == torch.device(device)


@pytest.mark.usefixtures("two_gpus")
def test_processes_that_share_a_gpu_do_not_speak_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert backend() == "cpu:gloo,cuda:nccl"  # by where a tensor is
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert backend() == "gloo"


def test_processors_speak_by_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert backend() == "gloo"
