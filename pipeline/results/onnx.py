"""The consensus of a run's heads as an ONNX file, checked against torch before it is left behind."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from temi.cache.files import os_errors, write_atomic
from temi.pipeline.errors import UserError
from temi.pipeline.extras import import_extra
from temi.pipeline.runs.model import ClusterModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED_ROWS = 64
TOLERANCE = 1e-4  # between torch's and ONNX Runtime's probabilities


class _Consensus(nn.Module):
    """Embeddings (n, D) float32 -> probability (n, C), cluster (n,), confidence (n,)."""

    def __init__(self, model: ClusterModel) -> None:
        super().__init__()
        self.model = model
        _ = model.heads.complete  # computed here once: an exporter cannot follow what depends on content

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # `ClusterModel.predict_proba` without its blocks of rows, whose number an exporter would freeze.
        scaling = self.model.scaling
        # ONNX knows neither loops over blocks nor `copysign`, so the signed root is written out.
        rooted = embedding.sign() * embedding.abs().sqrt() if scaling.root else embedding
        probability = self.model.consensus(self.model.probabilities(scaling.of_rooted(rooted)))
        confidence, cluster = probability.max(-1)
        return probability, cluster, confidence


def export_onnx(model: ClusterModel, out: Path) -> float:
    """Write `model` as one ONNX file: input ``embedding``; outputs ``probability``, ``cluster``, ``confidence``.

    Returns
    -------
    float
        Largest difference of a probability between torch and ONNX Runtime on random embeddings.

    Raises
    ------
    UserError
        The packages are missing, or the file does not compute what the model does; then no file is left.
    """
    for package in PACKAGES:
        import_extra(package, "onnx", "ONNX export")
    width = len(model.scaling.shift)
    embedding = model.scaling.shift + torch.randn(CHECKED_ROWS, width, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        _Consensus(model).eval(),
        (embedding[:3],),
        input_names=["embedding"],
        output_names=["probability", "cluster", "confidence"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    data = program.model_proto.SerializeToString()
    difference = _difference(data, model, embedding)
    if not difference <= TOLERANCE:
        raise UserError(f"the ONNX file differs from the model by {difference:.2g}; please report this with the run")
    with os_errors(out, "write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, data)
    return difference


def _difference(data: bytes, model: ClusterModel, embedding: Tensor) -> float:
    runtime = import_extra("onnxruntime", "onnx", "ONNX export")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    probability, cluster, _ = session.run(None, {"embedding": embedding.numpy()})
    expected = model.predict_proba(embedding).numpy()
    if (cluster != probability.argmax(-1)).any():
        return np.inf
    return float(np.abs(probability - expected).max())
