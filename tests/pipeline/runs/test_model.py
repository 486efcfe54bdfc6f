"""The trained model: blocks of rows are bounded in bytes and change no answer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture, write_cache
from photos import short
from safetensors.torch import load, save

from temi.pipeline.config import HeadConfig
from temi.pipeline.errors import UserError
from temi.pipeline.features.scaling import Moments, Scaling
from temi.pipeline.heads.stack import init_heads
from temi.pipeline.runs import model as module
from temi.pipeline.runs.model import ClusterModel, load_tensors
from temi.pipeline.runs.novelty import Novelty
from temi.pipeline.runs.train import read_assignments, train_heads

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


def test_a_flipped_bit_of_the_heads_is_damage_and_never_another_answer(tmp_path: Path) -> None:
    path, draw = tmp_path / "heads.safetensors", np.random.default_rng(0)
    make_model("mlp-bn").save(path)
    whole, (tensors, metadata) = path.read_bytes(), load_tensors(path)
    damaged = tmp_path / "damaged.safetensors"  # another file: tensors are mapped from theirs
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[draw.integers(len(whole))] ^= 1 << draw.integers(8)
        damaged.unlink(missing_ok=True)
        damaged.write_bytes(flipped)
        try:
            found, read = load_tensors(damaged)
        except UserError:
            continue
        # Where the word for the checksum itself is hit the file looks like one of before; its numbers are right.
        assert {name: metadata[name] for name in read if name in metadata} == metadata
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_file_without_a_checksum_is_of_before_and_is_read(tmp_path: Path) -> None:
    path, model = tmp_path / "heads.safetensors", make_model("linear")
    model.save(path)
    tensors, metadata = load_tensors(path)
    (tmp_path / "before").write_bytes(save(load(path.read_bytes()), {"temi": json.dumps(metadata)}))
    found, read = load_tensors(tmp_path / "before")
    assert read == metadata
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_damaged_run_is_told_by_its_files(tmp_path: Path) -> None:
    cache, run = write_cache(tmp_path / "cache", mixture(rows=60, dim=8, clusters=3)[0]), tmp_path / "run"
    train_heads(cache, short("train.min_steps=20"), run)
    novelty = run / "novelty.safetensors"
    flip(novelty, Path.stat(novelty).st_size - 40)
    with pytest.raises(UserError, match=r"novelty.safetensors is damaged \(its checksum does not match\)"):
        Novelty.load(novelty)
    table = run / "assignments.parquet"
    flip(table, 60)
    with pytest.raises(UserError, match=r"assignments.parquet cannot be read .*; write it again with `temi evaluate"):
        read_assignments(run)


def flip(path: Path, place: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 64
    path.write_bytes(damaged)
