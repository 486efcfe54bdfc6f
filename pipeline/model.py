"""The trained model that leaves stage two: the teacher heads of the best checkpoint, ready for new embeddings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float16, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cache.files import write_atomic
from pipeline.errors import UserError
from pipeline.heads import Heads, Scaling

BLOCK_ROWS = 8192  # rows per forward pass: bounds the (H, rows, C) probabilities
FORMAT = "temi-heads-1"


@dataclass(frozen=True)
class ClusterModel:
    """Teacher heads of one trial with what they need to read an embedding.

    Attributes
    ----------
    heads : H stacked heads
    scaling : of an embedding before the heads
    temperature : (H,) of the softmax
    loss : (H,) mean training loss of each head in the window that chose this checkpoint
    order : (C,) output of the selected head that is cluster 0, 1, ...: clusters are numbered by falling size
    fingerprint : what the embeddings were made from, field by field
    """

    heads: Heads
    scaling: Scaling
    temperature: Float[Tensor, " H"]
    loss: Float[Tensor, " H"]
    order: Int64[Tensor, " C"]
    fingerprint: dict[str, Any]

    @property
    def selected(self) -> int:
        """The head with the lowest mean training loss: no label had a part in it."""
        return int(self.loss.argmin())

    @property
    def clusters(self) -> int:
        """C."""
        return len(self.order)

    def blocks(self, embedding: Float16[Tensor, "n D"] | Float[Tensor, "n D"]) -> list[Tensor]:
        """(H, rows, C) probabilities of all heads, block by block."""
        if embedding.shape[1] != len(self.scaling.shift):
            raise UserError(
                f"these embeddings are {embedding.shape[1]} wide and the heads were trained on "
                f"{len(self.scaling.shift)}; embed with the run's backbone, {self.fingerprint.get('backbone')}"
            )
        device = self.scaling.shift.device
        return [
            self.heads.probabilities(self.scaling(block.to(device)), self.temperature)
            for block in torch.split(embedding, BLOCK_ROWS)
        ]

    def predict_proba(self, embedding: Float16[Tensor, "n D"] | Float[Tensor, "n D"]) -> Float[Tensor, "n C"]:
        """Cluster probabilities by the selected head, clusters in their final order."""
        return torch.cat([block[self.selected] for block in self.blocks(embedding)])[:, self.order]

    def head_clusters(self, embedding: Float16[Tensor, "n D"]) -> Int64[Tensor, "H n"]:
        """Every head's own assignment; the ids of different heads are unrelated."""
        return torch.cat([block.argmax(-1) for block in self.blocks(embedding)], dim=1)

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
        tensors = {f"head.{name}": tensor for name, tensor in self.heads.tensors().items()}
        tensors |= {"shift": self.scaling.shift, "factor": self.scaling.factor, "outputs": self.heads.outputs}
        tensors |= {"temperature": self.temperature, "loss": self.loss, "order": self.order}
        metadata = {
            "format": FORMAT,
            "kind": self.heads.kind,
            "unit": json.dumps(self.scaling.unit),
            "fingerprint": json.dumps(self.fingerprint, sort_keys=True),
        }
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path, device: torch.device | None = None) -> "ClusterModel":
        """Read what `save` wrote. Raises UserError where the file is missing, damaged or of another format."""
        tensors, metadata = load_tensors(path, device)
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} is not a file of trained heads; train them with `temi train-heads`")
        named = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
        weights = {name: tensor for name, tensor in named.items() if name not in ("norm.mean", "norm.var")}
        buffers = {name: tensor for name, tensor in named.items() if name in ("norm.mean", "norm.var")}
        return cls(
            Heads(metadata["kind"], weights, buffers, tensors["outputs"]),
            Scaling(tensors["shift"], tensors["factor"], json.loads(metadata["unit"])),
            tensors["temperature"],
            tensors["loss"],
            tensors["order"],
            json.loads(metadata["fingerprint"]),
        )


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that a crash leaves the old file or the new one, never half of it."""
    # One entry, because safetensors writes several in a random order and equal models should be equal files.
    packed = {"temi": json.dumps(metadata, sort_keys=True)}
    write_atomic(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, packed))


def load_tensors(path: Path, device: torch.device | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; a UserError where there is none or it is damaged."""
    try:
        with safe_open(path, framework="pt", device=str(device or "cpu")) as file:
            metadata = json.loads((file.metadata() or {}).get("temi", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; train with `temi train-heads CACHE --out {path.parent}`") from None
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and train again") from None
