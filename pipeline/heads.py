"""Clustering heads, all of a pass at once: every parameter carries the leading axis G.

Three kinds:

``linear``     Linear(D, C)
``published``  Linear(D, hidden) - GELU - Linear(hidden, bottleneck) - L2 - weight-normed Linear(bottleneck, C)
``mlp-bn``     Linear(D, hidden) - BatchNorm - GELU - Dropout - Linear(hidden, C), the first system's head

The first layer of all heads is one matrix product against the shared batch; later layers are batched products.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.config import HeadConfig

BATCH_NORM_MOMENTUM = 0.1
BATCH_NORM_EPS = 1e-5
INIT_STD = 0.02
ABSENT = -1e4  # a logit whose softmax is exactly zero at every temperature in use, yet finite
LAST_LAYER = ("last.direction", "last.gain", "last.weight", "last.bias")


@dataclass(frozen=True)
class Heads:
    """G stacked heads: trained weights, batch-norm statistics, and which of the C outputs each head has.

    Attributes
    ----------
    kind : linear, published or mlp-bn
    weights : name -> (G, ...) trained tensors
    buffers : name -> (G, ...) running statistics of mlp-bn; empty otherwise
    outputs : (G, C), False where a head has fewer clusters than the widest of its pass
    """

    kind: str
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    outputs: Bool[Tensor, "G C"]

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers by name."""
        return self.weights | self.buffers

    def to(self, device: torch.device) -> "Heads":
        """The same heads on `device`."""
        return replace(
            self,
            weights={name: tensor.to(device) for name, tensor in self.weights.items()},
            buffers={name: tensor.to(device) for name, tensor in self.buffers.items()},
            outputs=self.outputs.to(device),
        )

    def clone(self) -> "Heads":
        """A copy that shares no memory and tracks no gradient."""
        return replace(
            self,
            weights={name: tensor.detach().clone() for name, tensor in self.weights.items()},
            buffers={name: tensor.clone() for name, tensor in self.buffers.items()},
        )

    def select(self, index: Tensor | slice) -> "Heads":
        """The heads at `index` of axis G as heads of their own; those of a slice share its memory."""
        return replace(
            self,
            weights={name: tensor.detach()[index] for name, tensor in self.weights.items()},
            buffers={name: tensor[index] for name, tensor in self.buffers.items()},
            outputs=self.outputs[index],
        )

    def copy_(self, other: "Heads") -> None:
        """Take over weights and statistics of `other`."""
        for name, tensor in self.tensors().items():
            tensor.detach().copy_(other.tensors()[name].detach())

    def without_absent(self) -> "Heads":
        """The same heads without the outputs that none of them has."""
        widest = int(self.outputs.sum(1).max())
        weights = {name: w[:, :widest].clone() if name in LAST_LAYER else w for name, w in self.weights.items()}
        return replace(self, weights=weights, outputs=self.outputs[:, :widest])

    def logits(
        self, x: Float[Tensor, "M D"], training: bool = False, keep: Float[Tensor, "H M hidden"] | None = None
    ) -> Float[Tensor, "G M C"]:
        """Logits of every head for every row; an output that a head does not have gets ABSENT.

        In `training`, mlp-bn normalizes by the batch's statistics and records them; otherwise by the recorded ones.
        `keep` is mlp-bn's dropout mask, one per head of a trial and shared between trials.
        """
        z = _FORWARD[self.kind](self, x, training, keep)
        return z if self.complete else z.masked_fill(~self.outputs[:, None], ABSENT)

    def gradients(
        self, x: Float[Tensor, "M D"], logits: Float[Tensor, "G M C"], gradient: Float[Tensor, "G M C"]
    ) -> dict[str, Tensor]:
        """Gradient of every weight by name, from the `gradient` at the `logits` that these heads computed from `x`."""
        if self.kind == "linear":  # one product, and no graph to keep
            flat = gradient.transpose(0, 1).flatten(1)
            weight = flat.mT @ x
            return {"last.weight": weight.view_as(self.weights["last.weight"]), "last.bias": gradient.sum(1)}
        names, weights = list(self.weights), list(self.weights.values())
        return dict(zip(names, torch.autograd.grad(logits, weights, gradient), strict=True))

    @cached_property
    def complete(self) -> bool:
        """Whether every head has all C outputs."""
        return bool(self.outputs.all())

    def probabilities(self, x: Float[Tensor, "M D"], temperature: Float[Tensor, " G"]) -> Float[Tensor, "G M C"]:
        """softmax(z / tau) in evaluation mode."""
        return (self.logits(x) / temperature[:, None, None]).softmax(-1)


def init_heads(config: HeadConfig, dim: int, clusters: list[int], seeds: list[int]) -> Heads:
    """Fresh heads of T trials that differ in seed and number of clusters.

    A head's weights depend on its trial's seed and its place in the trial alone, so a trial starts the same whether
    it is trained by itself or beside others: truncated normal of std 0.02, zero biases, unit gains.
    """
    widest = max(clusters)
    stacks = [_init_head(config, dim, widest, seed, head) for seed in seeds for head in range(config.count)]
    weights = {name: torch.stack([stack[name] for stack in stacks]) for name in stacks[0]}
    buffers = {}
    if config.kind == "mlp-bn":
        shape = (len(stacks), config.hidden)
        buffers = {"norm.mean": torch.zeros(shape), "norm.var": torch.ones(shape)}
    sizes = torch.tensor(clusters).repeat_interleave(config.count)
    return Heads(config.kind, weights, buffers, torch.arange(widest) < sizes[:, None])


def _init_head(config: HeadConfig, dim: int, clusters: int, seed: int, head: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + head)

    def normal(out: int, into: int) -> Tensor:
        return torch.nn.init.trunc_normal_(torch.empty(out, into), std=INIT_STD, generator=generator)

    match config.kind:
        case "linear":
            return {"last.weight": normal(clusters, dim), "last.bias": torch.zeros(clusters)}
        case "published":
            return {
                "first.weight": normal(config.hidden, dim),
                "first.bias": torch.zeros(config.hidden),
                "second.weight": normal(config.bottleneck, config.hidden),
                "second.bias": torch.zeros(config.bottleneck),
                "last.direction": normal(clusters, config.bottleneck),
                "last.gain": torch.ones(clusters),
            }
        case _:
            return {
                "first.weight": normal(config.hidden, dim),
                "first.bias": torch.zeros(config.hidden),
                "norm.gain": torch.ones(config.hidden),
                "norm.bias": torch.zeros(config.hidden),
                "last.weight": normal(clusters, config.hidden),
                "last.bias": torch.zeros(clusters),
            }


def dropout_mask(
    shape: tuple[int, int, int], rate: float, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "H M hidden"]:
    """0 with probability `rate`, else 1 / (1 - rate)."""
    mask = torch.empty(shape, device=device).bernoulli_(1 - rate, generator=generator)
    return mask.div_(1 - rate)


def _shared_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One product of (M, D) with all heads' (G, out, D): (G, M, out)."""
    heads, width, dim = weight.shape
    stacked = F.linear(x, weight.reshape(heads * width, dim), bias.reshape(-1))
    return stacked.view(-1, heads, width).transpose(0, 1)


def _linear(heads: Heads, x: Tensor, training: bool, keep: Tensor | None) -> Tensor:
    return _shared_linear(x, heads.weights["last.weight"], heads.weights["last.bias"])


def _published(heads: Heads, x: Tensor, training: bool, keep: Tensor | None) -> Tensor:
    w = heads.weights
    hidden = F.gelu(_shared_linear(x, w["first.weight"], w["first.bias"]))
    hidden = torch.baddbmm(w["second.bias"][:, None], hidden, w["second.weight"].mT)
    direction = F.normalize(w["last.direction"], dim=-1) * w["last.gain"][..., None]
    return torch.bmm(F.normalize(hidden, dim=-1), direction.mT)


def _mlp_bn(heads: Heads, x: Tensor, training: bool, keep: Tensor | None) -> Tensor:
    w, b = heads.weights, heads.buffers
    count, width, _ = w["first.weight"].shape
    hidden = F.linear(x, w["first.weight"].flatten(0, 1), w["first.bias"].flatten())
    mean, var = b["norm.mean"].flatten().clone(), b["norm.var"].flatten().clone()
    gain, shift = w["norm.gain"].flatten(), w["norm.bias"].flatten()
    hidden = F.batch_norm(hidden, mean, var, gain, shift, training, BATCH_NORM_MOMENTUM, BATCH_NORM_EPS)
    if training:
        _update_running(b, mean.view(count, width), var.view(count, width))
    hidden = F.gelu(hidden).view(-1, count, width).transpose(0, 1)
    if keep is not None:
        hidden = (hidden.reshape(-1, *keep.shape) * keep).flatten(0, 1)
    return torch.baddbmm(w["last.bias"][:, None], hidden, w["last.weight"].mT)


@torch.no_grad()
def _update_running(buffers: dict[str, Tensor], mean: Tensor, var: Tensor) -> None:
    finite = (mean.isfinite() & var.isfinite()).all(-1, keepdim=True)  # a bad batch must not stay in the statistics
    for name, value in (("norm.mean", mean), ("norm.var", var)):
        buffers[name].copy_(torch.where(finite, value, buffers[name]))


_FORWARD = {"linear": _linear, "published": _published, "mlp-bn": _mlp_bn}
