"""Exact nearest rows by inner product: every pair is compared, in blocks that bound the memory.

Most of a search's time is N^2 D multiplications, and a processor with bfloat16 instructions does them four to five
times as fast in that type. So all pairs are scored in bfloat16, the rows of the highest scores, a little more than
twice K of them, are scored again in float32, and the best K of those are the answer if no other row can be among them,
by the bound on rounding in `_Screen.sure`. Rows where that cannot be told, because many are nearly tied, are compared
with all in float32.

The selection is exact too, and reads a block's scores once: columns are cut into groups, and the K largest values lie
in the K groups of the largest maxima.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from temi.pipeline.products import product

SPARE = 32  # candidates rescored in float32 beyond 2k, so few rows need the full search
WORTHWHILE = 32  # rows per candidate; with fewer, float32 alone is as fast
GROUP = 16  # columns per group; see benchmarks/mining.py
BLOCK_ROWS = {"cpu": 512, "cuda": 8192}  # rows scored at a time
BLOCK_BYTES = {"cpu": 2**26, "cuda": 2**30}  # largest block of scores
TILE = 256  # blocks are multiples of it: products of other sizes are up to a third slower
GATHERED_BYTES = 2**22  # candidates rescored at a time fit the processor's cache
HALF_ULP = 2.0**-8  # bfloat16 has 8 significant bits: rounding changes a value by at most this share of it

Found = tuple[Int64[Tensor, "n K"], Float[Tensor, "n K"]]


def nearest_rows(unit: Float[Tensor, "N D"], k: int, done: Callable[[int], None] = lambda rows: None) -> Found:
    """The k rows of `unit` with the largest inner product with each of its rows, itself excluded, and those products.

    Parameters
    ----------
    unit : rows of norm 1, or 0; on the device that compares
    k : fewer than N
    done : called with the number of rows whose neighbors were found since the last call
    """
    rows = torch.arange(len(unit), device=unit.device)
    if not screening_pays(unit, k):
        return _compare(unit, rows, k, done)
    index = torch.empty(len(unit), k, dtype=torch.long)
    score = torch.empty(len(unit), k)
    screen, unsure = _Screen.of(unit), []
    for block in torch.split(rows, _block_rows(screen.rounded)):
        index[block], score[block], sure = screen.search(block, k)
        unsure.append(block[~sure])
        done(int(sure.sum()))
    if len(again := torch.cat(unsure)):
        index[again], score[again] = _compare(unit, again, k, done)
    return index, score


def screening_pays(unit: Float[Tensor, "N D"], k: int) -> bool:
    """Whether `unit` is on a processor that multiplies bfloat16 natively, and has many times more rows than k."""
    has: dict[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # newer than the oldest torch that is supported
    native = has.get("avx512_bf16", False) or has.get("amx_bf16", False)
    return unit.device.type == "cpu" and native and len(unit) > WORTHWHILE * candidates(k)


def candidates(k: int) -> int:
    """Rows that are scored again where k are wanted."""
    return 2 * k + SPARE


def _compare(unit: Float[Tensor, "N D"], rows: Int64[Tensor, " n"], k: int, done: Callable[[int], None]) -> Found:
    """Neighbors of `rows` by float32 products with all rows."""
    found = []
    for block in torch.split(rows, _block_rows(unit)):
        found.append(_largest(_products(unit, block), k))
        done(len(block))
    score, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    return index, score


def _block_rows(table: Tensor) -> int:
    fitting = block_bytes(len(table), table.device.type) // (table.element_size() * len(table))
    return max(1, fitting - fitting % TILE if fitting > TILE else fitting)


def block_bytes(rows: int, device: str) -> int:
    """Memory of the scores of a block."""
    return min(BLOCK_BYTES[device], min(rows, BLOCK_ROWS[device]) * rows * torch.float32.itemsize)


def _products(table: Float[Tensor, "N D"], rows: Int64[Tensor, " n"], out: Tensor | None = None) -> Tensor:
    """Inner products of `rows` with all rows, (n, N); -inf with themselves."""
    own = table[rows]
    scores = product(own, table.T) if out is None else torch.mm(own, table.T, out=out[: len(rows)])
    scores[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    return scores


def _largest(scores: Float[Tensor, "n N"], count: int) -> tuple[Float[Tensor, "n K"], Int64[Tensor, "n K"]]:
    """The `count` largest values of each row, descending, and their columns."""
    groups = scores.shape[1] // GROUP
    if groups <= count:
        return scores.topk(count)
    grouped = scores[:, : GROUP * groups].reshape(
        len(scores), GROUP, groups
    )  # group g holds columns g, g + groups, ...
    best = grouped.amax(1).topk(count, sorted=False).indices
    member = torch.arange(0, GROUP * groups, groups, device=scores.device)
    rest = torch.arange(GROUP * groups, scores.shape[1], device=scores.device).expand(len(scores), -1)
    columns = torch.cat([(best[:, None] + member[:, None]).flatten(1), rest], dim=1)
    value, place = scores.gather(1, columns).topk(count)
    return value, columns.gather(1, place)


@dataclass(frozen=True)
class _Screen:
    """Rows in bfloat16, and how far that is from the truth.

    Attributes
    ----------
    unit : the rows themselves
    rounded : the same in bfloat16
    lost : norm of the difference of each
    scores : memory for the scores of a block
    """

    unit: Float[Tensor, "N D"]
    rounded: Float[Tensor, "N D"]
    lost: Float[Tensor, " N"]
    scores: Float[Tensor, "n N"]

    @classmethod
    def of(cls, unit: Float[Tensor, "N D"]) -> "_Screen":
        rounded = unit.bfloat16()
        pairs = zip(torch.split(unit, TILE), torch.split(rounded, TILE), strict=True)
        lost = torch.cat([(rows - half).norm(dim=1) for rows, half in pairs])
        return cls(unit, rounded, lost, rounded.new_empty(min(_block_rows(rounded), len(unit)), len(unit)))

    def search(self, rows: Int64[Tensor, " n"], k: int) -> tuple[Tensor, Tensor, Bool[Tensor, " n"]]:
        """Neighbors of `rows`, their scores in float32, and for which rows these are certainly the nearest."""
        value, candidate = _largest(_products(self.rounded, rows, self.scores), candidates(k))
        score, place = self._score_again(rows, candidate).topk(k)
        return candidate.gather(1, place), score, self.sure(rows, value[:, -1].float(), score[:, -1])

    def sure(
        self, rows: Int64[Tensor, " n"], best_other: Float[Tensor, " n"], last: Float[Tensor, " n"]
    ) -> Bool[Tensor, " n"]:
        """Whether no row outside the candidates can have a larger product than the last neighbor's.

        With x = x' + dx the product of two rows is x.y = x'.y' + dx.y + x'.dy: larger than that of the rounded rows by
        at most |dx| |y| + |x'| |dy|. The latter is summed in float32 and rounded once more, to at most `best_other`.
        """
        norm = self.unit[rows].norm(dim=1)
        operands = self.lost[rows] + (norm + self.lost[rows]) * self.lost.max()
        summed = 2 * torch.finfo(torch.float32).eps * self.unit.shape[1] * norm
        certain: Tensor = last >= best_other + best_other.abs() * HALF_ULP / (1 - HALF_ULP) + operands + summed
        return certain

    def _score_again(self, rows: Int64[Tensor, " n"], candidate: Int64[Tensor, "n M"]) -> Float[Tensor, "n M"]:
        """Products in float32 with the candidates alone."""
        width = candidate.shape[1]
        size = max(1, GATHERED_BYTES // (4 * width * self.unit.shape[1]))
        memory = self.unit.new_empty(size * width, self.unit.shape[1])
        score = []
        for own, others in zip(torch.split(rows, size), torch.split(candidate, size), strict=True):
            gathered = torch.index_select(self.unit, 0, others.flatten(), out=memory[: others.numel()])
            score.append(gathered.view(*others.shape, -1).mul_(self.unit[own][:, None]).sum(-1))
        return torch.cat(score)
