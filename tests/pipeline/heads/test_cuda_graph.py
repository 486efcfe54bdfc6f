"""The training step as a graph: recorded once, replayed on the same memory, it trains as the step itself does.

There is no GPU here: a recorder of torch's operators stands for the CUDA graph, with its semantics. What is replayed
are operators and the memory they were recorded with; no line of Python runs again, so a number that the host put into
an operator would stay what it was.
"""

from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mixtures import mixture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from temi.pipeline.config import load_config
from temi.pipeline.features.features import Features
from temi.pipeline.heads import cuda_graph as graph_module
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.lanes import Lanes
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.plugins import blame

WAITING = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.masked_select.default"}


class Operators(TorchDispatchMode):
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.seen.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for function, args, kwargs, memory in self.seen:
            result = function(*args, **kwargs)
            for old, new in zip(tree_leaves(memory), tree_leaves(result), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.cuda without a GPU: the graphs that were recorded, and the tensors that recording must leave alone."""
    graphs = []

    @contextmanager
    def record(graph: Operators, capture_error_mode: str) -> Any:
        before = {id(t): t.clone() for t in tensors}
        with graph:
            yield
        for tensor in tensors:  # recording computes nothing
            tensor.copy_(before[id(tensor)])
        graphs.append(graph)

    tensors: list[torch.Tensor] = []
    modes = ["default"]
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fake = {"CUDAGraph": Operators, "graph": record, "Stream": lambda: stream, "stream": lambda own: nullcontext()}
    fake["set_sync_debug_mode"] = modes.append
    own = SimpleNamespace(cuda=SimpleNamespace(**fake, current_stream=lambda: stream))
    monkeypatch.setattr(graph_module, "torch", own)
    return SimpleNamespace(graphs=graphs, tensors=tensors, modes=modes)


@pytest.mark.parametrize(
    "settings",
    [
        ("heads.kind=linear", "optimizer.freeze_last=0.3"),
        ("heads.kind=published", "optimizer.freeze_last=0.3"),
        ("heads.kind=mlp-bn",),
        ("heads.kind=linear", "objective.name=scan", "objective.regularizer=sample-entropy"),
        ("heads.kind=linear", "objective.name=beta-mi", "objective.regularizer=batch-entropy"),
    ],
)
def test_a_replayed_step_trains_as_the_step_does(tmp_path: Path, cuda: Any, settings: tuple[str, ...]) -> None:
    base = ["heads.clusters=6", "heads.count=2", "heads.hidden=16", "heads.bottleneck=8", "neighbors.k=10"]
    base += ["train.batch_size=64", "train.epochs=0", "train.min_steps=30", "start.kind=random"]
    configs = [load_config(None, [*base, *settings, f"optimizer.clip={clip}"]) for clip in (0, 0.01)]
    data = load_training_set(Features.of_array(mixture()[0]), configs[0])
    plain, graphed = HeadTrainer(configs, data), HeadTrainer(configs, data)
    graphed.record = graph_module.Replay
    plain.lanes = graphed.lanes = Lanes(1, large=True)  # as on a GPU
    window = graphed.window
    cuda.tensors += [*graphed.state().values(), window.loss, window.norm, window.count]
    for number, rows in enumerate(plain.batches.bank_rows(0, plain.steps)):
        plain.step(number, rows)
        graphed.step(number, rows)
    for name, tensor in plain.state().items():
        assert torch.equal(tensor, graphed.state()[name]), name
    assert torch.equal(plain.window.means()[0], window.means()[0])
    assert len(cuda.graphs) == 1 + ("optimizer.freeze_last=0.3" in settings)
    assert not WAITING & {str(function) for graph in cuda.graphs for function, *_ in graph.seen}


def test_a_step_that_waits_for_the_device_is_never_recorded(cuda: Any, capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def step() -> None:
        if cuda.modes[-1] == "error":  # what torch does at .item() then
            raise RuntimeError("called a synchronizing CUDA operation")
        done.append(1)

    replay = graph_module.Replay(step)
    for _ in range(6):
        replay()
    assert (len(done), cuda.graphs, cuda.modes[-1]) == (6, [], "default")
    assert capsys.readouterr().err.count("waits for the GPU") == 1


def test_a_plugins_loss_that_waits_is_never_recorded(cuda: Any) -> None:
    def loss(batch: object) -> None:
        if cuda.modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    def step() -> None:
        with blame("the objective 'mine'", loss):
            loss(None)

    replay = graph_module.Replay(step)
    for _ in range(6):
        replay()
    assert (cuda.graphs, cuda.modes[-1]) == ([], "default")


def test_another_error_of_a_step_is_not_hidden(cuda: Any) -> None:
    def step() -> None:
        if cuda.modes[-1] == "error":
            raise RuntimeError("out of memory")

    replay = graph_module.Replay(step)
    replay()
    replay()
    with pytest.raises(RuntimeError, match="out of memory"):
        replay()
    assert cuda.modes[-1] == "default"
