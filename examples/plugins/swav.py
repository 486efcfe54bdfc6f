"""SwAV's swapped prediction (Caron et al., NeurIPS 2020): the target is the teacher's code, balanced by Sinkhorn.

temi train-heads CACHE --clusters 10 --out RUN --plugin swav.py --set objective.name=swav
"""

from temi.pipeline.heads.objectives import Objective, PairBatch, by_autograd, register_objective

ROUNDS = 3


def swav(batch: PairBatch):
    code = batch.partner
    for _ in range(ROUNDS):  # rows and clusters in turn, in log space
        code = code - code.logsumexp(1, keepdim=True)
        code = code - code.logsumexp(2, keepdim=True)
    return -(code.exp() * batch.student).sum(-1).mean(-1)


register_objective("swav", Objective(by_autograd(swav)))
