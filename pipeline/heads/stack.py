"""Clustering heads, all of a pass at once: every parameter carries the leading axis G.

Three kinds:

``linear``     Linear(D, C)
``published``  Linear(D, hidden) - GELU - Linear(hidden, bottleneck) - L2 - weight-normed Linear(bottleneck, C)
``mlp-bn``     Linear(D, hidden) - BatchNorm - GELU - Dropout - Linear(hidden, C), the first system's head

The first layer of all heads is one matrix product against the shared batch; later layers are batched products. The
way back is written out: no graph is kept, and what the forward pass computed is used again.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from temi.pipeline.config import HeadConfig
from temi.pipeline.products import batched_product, product
from temi.pipeline.torch_private import batch_norm_backward, gelu_backward

BATCH_NORM_MOMENTUM = 0.1
BATCH_NORM_EPS = 1e-5
INIT_STD = 0.02
ABSENT = -1e4  # a logit whose softmax is exactly zero at every temperature in use, yet finite
FEWEST = 1e-12  # a norm that is divided by is at least this, as in torch.nn.functional.normalize
WIDE = 128  # at this width or more, logits are row-major; below it, column-major
LAST_LAYER = ("last.direction", "last.gain", "last.weight", "last.bias")


@dataclass(frozen=True)
class Pass:
    """What a forward pass leaves for the way back.

    Attributes
    ----------
    logits : (G, M, C), divided by the temperature if one was given
    kept : activations by name, and ``scale`` (G,), one over the temperature
    """

    logits: Float[Tensor, "G M C"]
    kept: dict[str, Tensor]


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

    @property
    def widest(self) -> int:
        """Outputs of the widest layer."""
        return max(weight.shape[1] for weight in self.weights.values())

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
        """A copy that shares no memory."""
        return replace(
            self,
            weights={name: tensor.clone() for name, tensor in self.weights.items()},
            buffers={name: tensor.clone() for name, tensor in self.buffers.items()},
        )

    def select(self, index: Tensor | slice) -> "Heads":
        """The heads at `index` of axis G as heads of their own; those of a slice share its memory."""
        return replace(
            self,
            weights={name: tensor[index] for name, tensor in self.weights.items()},
            buffers={name: tensor[index] for name, tensor in self.buffers.items()},
            outputs=self.outputs[index],
        )

    def copy_(self, other: "Heads") -> None:
        """Take over weights and statistics of `other`."""
        for name, tensor in self.tensors().items():
            tensor.copy_(other.tensors()[name])

    def without_absent(self) -> "Heads":
        """The same heads without the outputs that none of them has."""
        widest = int(self.outputs.sum(1).max())
        weights = {name: w[:, :widest].clone() if name in LAST_LAYER else w for name, w in self.weights.items()}
        return replace(self, weights=weights, outputs=self.outputs[:, :widest])

    def forward(
        self,
        x: Float[Tensor, "M D"],
        temperature: Float[Tensor, " G"] | None = None,
        training: bool = False,
        keep: Float[Tensor, "H M hidden"] | None = None,
    ) -> Pass:
        """Logits z, or z / temperature, of every head for every row; an output that a head lacks gets ABSENT.

        In `training`, mlp-bn normalizes by the batch's statistics and records them; otherwise by the recorded ones.
        `keep` is mlp-bn's dropout mask, one per head of a trial and shared between trials.
        """
        # Fold 1/temperature into the last layer: fewer multiplications than scaling the logits.
        scale = torch.ones_like(x[0, :1]) if temperature is None else temperature.reciprocal()
        passed = _FORWARD[self.kind](self, x, scale[:, None, None], training, keep)
        if not self.complete:
            passed.logits.masked_fill_(~self.outputs[:, None], ABSENT)
        return passed

    def logits(self, x: Float[Tensor, "M D"], training: bool = False) -> Float[Tensor, "G M C"]:
        """The logits of `forward` alone."""
        return self.forward(x, training=training).logits

    def gradients(self, passed: Pass, gradient: Float[Tensor, "G M C"], share: float = 1.0) -> dict[str, Tensor]:
        """Gradient of every weight by name, from the `gradient` at the logits of `passed`; all times `share`."""
        return _BACKWARD[self.kind](self, passed.kept, gradient, share)

    @cached_property
    def complete(self) -> bool:
        """Whether every head has all C outputs."""
        return bool(self.outputs.all())

    def probabilities(self, x: Float[Tensor, "M D"], temperature: Float[Tensor, " G"]) -> Float[Tensor, "G M C"]:
        """softmax(z / tau) in evaluation mode."""
        return self.logits(x).div_(temperature[:, None, None]).softmax(-1)


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


def head_size(config: HeadConfig, dim: int, clusters: int) -> tuple[int, int]:
    """Weights of one head, and outputs of its widest layer."""
    heads = init_heads(config.model_copy(update={"count": 1}), dim, [clusters], [0])
    return sum(weight.numel() for weight in heads.weights.values()), heads.widest


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


def dropout_mask_(mask: Float[Tensor, "H M hidden"], rate: float, generator: torch.Generator) -> None:
    """Fill `mask` with 0 at probability `rate`, else 1 / (1 - rate)."""
    mask.bernoulli_(1 - rate, generator=generator).div_(1 - rate)


def _shared_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One product of (M, D) with all heads' (G, out, D): (G, M, out)."""
    heads, width, _ = weight.shape
    if width < WIDE:  # as (G, out, M): reductions over few outputs run along many rows
        stacked = product(weight.flatten(0, 1), x.mT).add_(bias.reshape(-1, 1))
        return stacked.view(heads, width, -1).mT
    stacked = product(x, weight.flatten(0, 1).mT).add_(bias.flatten())
    return stacked.view(-1, heads, width).transpose(0, 1)


def _shared_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of the weight of `_shared_linear`, (G, out, D), from (G, M, out)."""
    heads, rows, width = gradient.shape
    if gradient.stride(1) == 1:
        stacked = gradient.mT.reshape(-1, rows)
    else:
        stacked = gradient.transpose(0, 1).reshape(rows, -1).mT
    return product(stacked, x).view(heads, width, -1)


def _own_linear(hidden: Tensor, weight: Tensor) -> Tensor:
    """Each head's product of its (M, in) with its (out, in): (G, M, out), in memory as from `_shared_linear`."""
    if weight.shape[1] < WIDE:
        return batched_product(weight, hidden.mT).mT
    return batched_product(hidden, weight.mT)


def _linear(heads: Heads, x: Tensor, scale: Tensor, training: bool, keep: Tensor | None) -> Pass:
    w = heads.weights
    logits = _shared_linear(x, w["last.weight"] * scale, w["last.bias"] * scale[..., 0])
    return Pass(logits, {"x": x, "scale": scale})


def _linear_back(heads: Heads, kept: dict[str, Tensor], gradient: Tensor, share: float) -> dict[str, Tensor]:
    scale = kept["scale"] * share
    weight = _shared_gradient(gradient, kept["x"]).mul_(scale)
    return {"last.weight": weight, "last.bias": gradient.sum(1).mul_(scale[..., 0])}


def _published(heads: Heads, x: Tensor, scale: Tensor, training: bool, keep: Tensor | None) -> Pass:
    w = heads.weights
    inner = _shared_linear(x, w["first.weight"], w["first.bias"])
    hidden = F.gelu(inner)
    unit = batched_product(hidden, w["second.weight"].mT).add_(w["second.bias"][:, None])
    norm = unit.norm(dim=-1, keepdim=True).clamp_min_(FEWEST)
    unit.div_(norm)
    last = F.normalize(w["last.direction"], dim=-1).mul_(w["last.gain"][..., None] * scale)
    kept = {"x": x, "scale": scale, "inner": inner, "hidden": hidden, "unit": unit, "norm": norm, "last": last}
    return Pass(_own_linear(unit, last), kept)


def _published_back(heads: Heads, kept: dict[str, Tensor], gradient: Tensor, share: float) -> dict[str, Tensor]:
    w, unit = heads.weights, kept["unit"]
    # y = b / |b|: the part of the gradient along y is lost. The same for the rows v of the weight norm g v / |v|.
    second = batched_product(gradient, kept["last"] * share)
    along = (second * unit).sum(-1, keepdim=True)
    second.addcmul_(unit, along, value=-1).div_(kept["norm"])
    inner = gelu_backward(batched_product(second, w["second.weight"]), kept["inner"])
    last = batched_product(gradient.mT, unit).mul_(kept["scale"] * share)
    length = w["last.direction"].norm(dim=-1, keepdim=True).clamp_min_(FEWEST)
    direction = w["last.direction"] / length
    gain = (last * direction).sum(-1, keepdim=True)
    last.addcmul_(direction, gain, value=-1).mul_(w["last.gain"][..., None] / length)
    return {
        "first.weight": _shared_gradient(inner, kept["x"]),
        "first.bias": inner.sum(1),
        "second.weight": batched_product(second.mT, kept["hidden"]),
        "second.bias": second.sum(1),
        "last.direction": last,
        "last.gain": gain.squeeze(-1),
    }


def _mlp_bn(heads: Heads, x: Tensor, scale: Tensor, training: bool, keep: Tensor | None) -> Pass:
    w, b = heads.weights, heads.buffers
    count, width, _ = w["first.weight"].shape
    # All heads are one batch norm over count * width columns.
    inner = product(x, w["first.weight"].flatten(0, 1).mT).add_(w["first.bias"].flatten())
    mean, var = b["norm.mean"].flatten().clone(), b["norm.var"].flatten().clone()
    gain, shift = w["norm.gain"].flatten(), w["norm.bias"].flatten()
    normal, center, spread = torch.native_batch_norm(
        inner, gain, shift, mean, var, training, BATCH_NORM_MOMENTUM, BATCH_NORM_EPS
    )
    if training:
        _update_running(b, mean.view(count, width), var.view(count, width))
    hidden = F.gelu(normal).view(-1, count, width).transpose(0, 1)
    if keep is not None:
        hidden = (hidden.reshape(-1, *keep.shape) * keep).flatten(0, 1)
    last = w["last.weight"] * scale
    logits = _own_linear(hidden, last).add_((w["last.bias"] * scale[..., 0])[:, None])
    kept = {"x": x, "scale": scale, "inner": inner, "normal": normal, "center": center, "spread": spread}
    return Pass(logits, kept | {"hidden": hidden, "last": last} | ({} if keep is None else {"keep": keep}))


def _mlp_bn_back(heads: Heads, kept: dict[str, Tensor], gradient: Tensor, share: float) -> dict[str, Tensor]:
    w, b, scale = heads.weights, heads.buffers, kept["scale"] * share
    count, width, _ = w["first.weight"].shape
    hidden = batched_product(gradient, kept["last"] * share)
    if "keep" in kept:
        hidden = hidden.view(-1, *kept["keep"].shape).mul_(kept["keep"]).flatten(0, 1)
    normal = gelu_backward(hidden.transpose(0, 1).reshape(-1, count * width), kept["normal"])
    running, saved = (b["norm.mean"].flatten(), b["norm.var"].flatten()), (kept["center"], kept["spread"])
    inner, gain, shift = batch_norm_backward(
        normal, kept["inner"], w["norm.gain"].flatten(), running, saved, BATCH_NORM_EPS
    )
    return {
        "first.weight": product(inner.mT, kept["x"]).view_as(w["first.weight"]),
        "first.bias": inner.sum(0).view(count, width),
        "norm.gain": gain.view(count, width),
        "norm.bias": shift.view(count, width),
        "last.weight": batched_product(gradient.mT, kept["hidden"]).mul_(scale),
        "last.bias": gradient.sum(1).mul_(scale[..., 0]),
    }


def _update_running(buffers: dict[str, Tensor], mean: Tensor, var: Tensor) -> None:
    finite = (mean.isfinite() & var.isfinite()).all(-1, keepdim=True)  # a bad batch must not stay in the statistics
    for name, value in (("norm.mean", mean), ("norm.var", var)):
        buffers[name].copy_(torch.where(finite, value, buffers[name]))


_FORWARD = {"linear": _linear, "published": _published, "mlp-bn": _mlp_bn}
_BACKWARD = {"linear": _linear_back, "published": _published_back, "mlp-bn": _mlp_bn_back}
