"""Blocks of heads side by side: the same numbers whatever the number of threads, and no thread left changed."""

import subprocess
import sys
import threading

import pytest
import torch
from mixtures import mixture

from temi.pipeline.config import load_config
from temi.pipeline.device import torch_threads
from temi.pipeline.features.features import Features
from temi.pipeline.heads import trainer as trainer_module
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.lanes import Lanes
from temi.pipeline.heads.trainer import HeadTrainer

SETTINGS = ["heads.clusters=6", "heads.count=6", "neighbors.k=10", "train.batch_size=64", "train.epochs=0"]


@pytest.mark.parametrize("kind", ["linear", "published", "mlp-bn"])
def test_heads_do_not_depend_on_the_number_of_lanes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "BLOCK_BYTES", 1)  # a block for every head
    settings = [*SETTINGS, "train.min_steps=20", f"heads.kind={kind}", "heads.hidden=16", "heads.bottleneck=8"]
    config = load_config(None, settings)
    data, found = load_training_set(Features.of_array(mixture()[0]), config), []
    for threads in (1, 2, 4):
        with torch_threads(threads):
            trainer = HeadTrainer([config], data)
            assert trainer.lanes.count == threads
            trainer.lanes.threads = 1  # such small blocks count as large ones here
            for number, rows in enumerate(trainer.batches.bank_rows(0, trainer.steps)):
                trainer.step(number, rows)
        found.append(trainer.state())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name
        assert torch.equal(tensor, found[2][name]), name


def test_threads_that_are_left_share_large_blocks_only() -> None:
    with torch_threads(4):
        assert (Lanes(2, large=True).count, Lanes(2, large=True).threads) == (2, 2)
        assert (Lanes(2, large=False).count, Lanes(2, large=False).threads) == (2, 1)
        assert (Lanes(9, large=True).count, Lanes(9, large=True).threads) == (4, 1)
        assert (Lanes(1, large=True).count, Lanes(1, large=True).threads) == (1, 4)


def test_lanes_keep_order_and_gradients_out_and_errors_whole() -> None:
    with torch_threads(3):
        lanes = Lanes(3, large=False)
        meeting = threading.Barrier(3, timeout=20)  # passes only if three are at work at once

        def work(number: int, letter: str) -> tuple[int, str, bool, int]:
            meeting.wait()
            return number, letter, torch.is_grad_enabled(), torch.get_num_threads()

        assert lanes.each(work, range(3), "abc") == [(0, "a", False, 1), (1, "b", False, 1), (2, "c", False, 1)]
        with pytest.raises(ZeroDivisionError):
            lanes.each(lambda number: 1 // number, [1, 0, 2])
        with lanes.own_threads():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3


def test_lanes_leave_the_threads_of_others_alone() -> None:
    """A thread that starts later shares operations as before; lanes that nobody holds end."""
    script = """
import gc, threading, torch
torch.set_num_threads(3)
from temi.pipeline.heads.lanes import Lanes
lanes, later = Lanes(2, large=False), []
thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
thread.start(); thread.join()
before = threading.active_count()
del lanes
gc.collect()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(20)
print(torch.get_num_threads(), later, before, threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split("\n")[0] == "3 [3] 3 1"
