"""The trained model that leaves stage two: the teacher heads of the best checkpoint, ready for new embeddings."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from temi.cache import Fingerprint
from temi.cache.files import os_errors, parse, write_atomic
from temi.cache.kept import array_digest
from temi.pipeline.errors import UserError
from temi.pipeline.features.blocks import Embeddings, blocks_of, collect
from temi.pipeline.features.scaling import Scaling
from temi.pipeline.heads.stack import Heads

BLOCK_ROWS = 8192  # rows per forward pass
BLOCK_BYTES = 2**22  # largest activation of a forward pass
ASSIGNED_COPIES = 5  # of the widest activation
FORMAT = "temi-heads-3"
DIGEST = "xxh3_128"  # entry of the metadata: of the other entries and of all tensors
GIVEN_UP = -1  # in place of an output


@dataclass(frozen=True)
class ClusterModel:
    """Teacher heads of one trial with what they need to read an embedding.

    Attributes
    ----------
    heads : H stacked heads
    scaling : of an embedding before the heads
    temperature : (H,) of the softmax
    loss : (H,) mean training loss of each head in the window that chose this checkpoint
    trust : (H,) weight of each head in the consensus, summing to 1
    alignment : (H, C) output of each head that is cluster 0, 1, ...; clusters are numbered by falling size, unless the
        run continues another. GIVEN_UP where no head has the cluster any more: its probability is 0
    fingerprint : what the embeddings were made from, field by field
    softness : of what the heads say together; see `softened` and runs/calibration.py
    """

    heads: Heads
    scaling: Scaling
    temperature: Float[Tensor, " H"]
    loss: Float[Tensor, " H"]
    trust: Float[Tensor, " H"]
    alignment: Int64[Tensor, "H C"]
    fingerprint: Fingerprint | None
    softness: float = 1.0

    @property
    def made_from(self) -> Fingerprint:
        """The `fingerprint`; UserError where heads were trained on an array, and nothing tells what made it."""
        if self.fingerprint is None:
            raise UserError("these heads were trained on an array; what made its rows is not known")
        return self.fingerprint

    @property
    def selected(self) -> int:
        """The head with the lowest mean training loss: no label had a part in it."""
        return int(self.loss.argmin())

    @property
    def clusters(self) -> int:
        """C."""
        return self.alignment.shape[1]

    @property
    def given_up(self) -> set[int]:
        """Numbers that no head has any more: this run continues another, which merged these clusters or lost them."""
        return set((self.alignment == GIVEN_UP).all(0).nonzero()[:, 0].tolist())

    @property
    def of_scaled(self) -> "ClusterModel":
        """The same for rows that are scaled already, such as those of a training set."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return _OfScaled(**own | {"scaling": Scaling.identity(self.scaling.width, self.scaling.shift.device)})

    def consensus(self, probability: Float[Tensor, "H n C"]) -> Float[Tensor, "n C"]:
        """What the heads say together: the mean of their probabilities by `trust`, `softened`."""
        return self.softened(torch.tensordot(self.trust, probability, 1))

    def softened(self, together: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
        """Probabilities to the power of 1 / `softness`, summing to 1: their order stays."""
        if self.softness == 1:
            return together
        power = (together / together.amax(-1, keepdim=True)) ** (1 / self.softness)
        return power / power.sum(-1, keepdim=True)

    def blocks(self, embedding: Embeddings) -> Iterator[tuple[Tensor, Tensor]]:
        """Block by block the scaled rows, (n, D'), and all heads' probabilities, (H, n, C): all at once would not fit.

        Probabilities are in the aligned cluster ids: entry c means the same cluster in every head.
        """
        if embedding.shape[1] != len(self.scaling.shift):
            backbone = (
                "" if self.fingerprint is None else f"; embed with the run's backbone, {self.fingerprint.backbone}"
            )
            raise UserError(
                f"these embeddings are {embedding.shape[1]} wide and the heads were trained on "
                f"{len(self.scaling.shift)}{backbone}"
            )
        width = max(len(self.loss) * self.heads.widest, self.scaling.width)
        for block in blocks_of(embedding, block_rows(width)):
            scaled = self._scaled(block.to(self.scaling.shift.device))
            yield scaled, self.probabilities(scaled)

    def _scaled(self, block: Float[Tensor, "n D"]) -> Float[Tensor, "n P"]:
        return self.scaling(block)

    @torch.no_grad()
    def probabilities(self, scaled: Float[Tensor, "n P"]) -> Float[Tensor, "H n C"]:
        """What every head says of scaled rows, in the aligned cluster ids."""
        index = self.alignment[:, None].expand(-1, scaled.shape[0], -1)
        found = self.heads.probabilities(scaled, self.temperature).gather(2, index.clamp_min(0))
        return found * (self.alignment != GIVEN_UP)[:, None]  # no branch: an export traces this without data

    def renumbered(self, numbers: Int64[Tensor, " C"], total: int) -> "ClusterModel":
        """The same model whose cluster c is called `numbers[c]`, out of `total` numbers."""
        alignment = torch.full((len(self.alignment), total), GIVEN_UP, device=self.alignment.device)
        alignment[:, numbers] = self.alignment
        return replace(self, alignment=alignment)

    def predict_proba(self, embedding: Embeddings) -> Float[Tensor, "n C"]:
        """The consensus of the aligned heads."""
        found = ([self.consensus(probability)] for _, probability in self.blocks(embedding))
        return collect(found, [len(embedding)])[0]

    def assign(self, embedding: Embeddings) -> tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]:
        """The cluster that the consensus thinks likeliest, and its probability there, the confidence."""
        best = (self.consensus(probability).max(-1) for _, probability in self.blocks(embedding))
        confidence, cluster = collect(best, [len(embedding)] * 2)
        return cluster, confidence

    def head_clusters(self, embedding: Embeddings) -> Int32[Tensor, "H n"]:
        """Every head's own assignment, in the aligned cluster ids."""
        own = ([probability.argmax(-1).int().mT] for _, probability in self.blocks(embedding))
        return collect(own, [len(embedding)])[0].mT

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
        tensors = {f"head.{name}": tensor for name, tensor in self.heads.tensors().items()}
        tensors |= {"shift": self.scaling.shift, "weight": self.scaling.weight, "outputs": self.heads.outputs}
        tensors |= {
            "temperature": self.temperature,
            "loss": self.loss,
            "trust": self.trust,
            "alignment": self.alignment,
        }
        metadata = {
            "format": FORMAT,
            "kind": self.heads.kind,
            "root": json.dumps(self.scaling.root),
            "segments": json.dumps(self.scaling.segments),
            "softness": json.dumps(self.softness),
            "fingerprint": json.dumps(self.fingerprint and asdict(self.fingerprint), sort_keys=True),
        }
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path, device: torch.device | None = None) -> "ClusterModel":
        """Read what `save` wrote. Raises UserError where the file is missing, damaged or of another format."""
        tensors, metadata = load_tensors(path, device)
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} is not a file of trained heads; train them with `temi train-heads`")
        segments = tuple(json.loads(metadata["segments"]))
        named = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
        weights = {name: tensor for name, tensor in named.items() if name not in ("norm.mean", "norm.var")}
        buffers = {name: tensor for name, tensor in named.items() if name in ("norm.mean", "norm.var")}
        return cls(
            Heads(metadata["kind"], weights, buffers, tensors["outputs"]),
            Scaling(json.loads(metadata["root"]), tensors["shift"], tensors["weight"], segments),
            tensors["temperature"],
            tensors["loss"],
            tensors["trust"],
            tensors["alignment"],
            parse(Fingerprint, made_from, path) if (made_from := json.loads(metadata["fingerprint"])) else None,
            json.loads(metadata.get("softness", "1")),  # heads of before are as sure as they were
        )


class _OfScaled(ClusterModel):
    """A model of rows that are taken as they are: copies of every block would cost as much memory again."""

    def _scaled(self, block: Float[Tensor, "n D"]) -> Float[Tensor, "n P"]:
        return block


def block_rows(width: int) -> int:
    """Rows per forward pass where the widest activation of all heads is `width` numbers a row."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (width * torch.float32.itemsize)))


def assigning_bytes(rows: int, heads: int, widest: int) -> int:
    """Memory of assigning rows, where the widest activation of a head is `widest` numbers a row."""
    width = heads * widest
    return ASSIGNED_COPIES * min(rows, block_rows(width)) * width * torch.float32.itemsize


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that a crash leaves the old file or the new one, never half of it."""
    sealed = metadata | {DIGEST: _digest(tensors, metadata)}
    # One entry, because safetensors writes several in a random order and equal models should be equal files.
    packed = {"temi": json.dumps(sealed, sort_keys=True)}
    write_atomic(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, packed))


def load_tensors(path: Path, device: torch.device | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_tensors` wrote; a UserError where there is none or it is damaged."""
    with _opened(path) as file:
        metadata = json.loads((file.metadata() or {}).get("temi", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = metadata.pop(DIGEST, None)  # files of before have none
    if written is not None and written != _digest(tensors, metadata):
        raise UserError(f"{path} is damaged (its checksum does not match); restore it, or delete it and train again")
    return {name: tensor.to(device or "cpu") for name, tensor in tensors.items()}, metadata


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    text = np.frombuffer(json.dumps(metadata, sort_keys=True).encode(), np.uint8)
    return array_digest({"temi": text, **{name: tensor.numpy(force=True) for name, tensor in tensors.items()}})


def load_metadata(path: Path) -> dict[str, str]:
    """Metadata alone of a file that `save_tensors` wrote."""
    with _opened(path) as file:
        metadata: dict[str, str] = json.loads((file.metadata() or {}).get("temi", "{}"))
        return metadata


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except FileNotFoundError:
        with os_errors(path, "read"):  # safetensors says so, too, of a file that may not be read
            if path.exists():
                path.open("rb").close()
        raise UserError(f"{path} does not exist; train with `temi train-heads CACHE --out {path.parent}`") from None
    except (SafetensorError, ValueError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and train again") from None
