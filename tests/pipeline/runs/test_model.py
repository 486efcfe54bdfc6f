"""The trained model: blocks of rows are bounded in bytes and change no answer."""

import pytest
import torch

from temi.pipeline.config import HeadConfig
from temi.pipeline.features.scaling import Moments, Scaling
from temi.pipeline.heads.stack import init_heads
from temi.pipeline.runs import model as module
from temi.pipeline.runs.model import ClusterModel

HEADS, CLUSTERS, DIM, ROWS = 5, 7, 12, 101


def make_model(kind: str) -> ClusterModel:
    generator = torch.Generator().manual_seed(0)
    config = HeadConfig(kind=kind, count=HEADS, hidden=24, bottleneck=16)
    heads = init_heads(config, DIM, [CLUSTERS], [0])
    temperature, loss = torch.full((HEADS,), 0.1), torch.rand(HEADS, generator=generator)
    alignment = torch.stack([torch.randperm(CLUSTERS, generator=generator) for _ in range(HEADS)])
    scaling = Scaling.fit("center", Moments(torch.randn(ROWS, DIM, generator=generator)))
    trust = torch.softmax(loss, 0)
    return ClusterModel(heads, scaling, temperature, loss, trust, alignment, None)


@pytest.mark.parametrize(("kind", "widest"), [("linear", CLUSTERS), ("published", 24), ("mlp-bn", 24)])
def test_blocks_are_bounded_by_the_widest_activation_and_change_no_answer(
    monkeypatch: pytest.MonkeyPatch, kind: str, widest: int
) -> None:
    model, embedding = make_model(kind), torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    whole = model.predict_proba(embedding), *model.assign(embedding), model.head_clusters(embedding)
    assert len(list(model.blocks(embedding))) == 1
    monkeypatch.setattr(module, "BLOCK_BYTES", 10 * HEADS * widest * 4 + 1)
    sizes = [probability.shape for _, probability in model.blocks(embedding)]
    assert sizes == [(HEADS, 10, CLUSTERS)] * 10 + [(HEADS, 1, CLUSTERS)]
    parts = model.predict_proba(embedding), *model.assign(embedding), model.head_clusters(embedding)
    for expected, found in zip(whole, parts, strict=True):
        torch.testing.assert_close(found, expected)


def test_answers_are_those_of_the_definition() -> None:
    model, embedding = make_model("linear"), torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    own = model.heads.probabilities(model.scaling(embedding), model.temperature)
    aligned = torch.stack([p[:, order] for p, order in zip(own, model.alignment, strict=True)])
    consensus = torch.einsum("h,hnc->nc", model.trust, aligned)
    cluster, confidence = model.assign(embedding)
    torch.testing.assert_close(model.predict_proba(embedding), consensus)
    assert torch.equal(cluster, consensus.argmax(1))
    torch.testing.assert_close(confidence, consensus.amax(1))
    assert torch.equal(model.head_clusters(embedding).long(), aligned.argmax(-1))


def test_a_block_has_a_row_however_wide_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    assert module.block_rows(1000) == 1
