"""A power law as prior on cluster sizes, by rank, as in PET-TURTLE (Salazar Cavazos, 2026, arXiv 2601.03237).

KL(sizes || prior), sizes the batch mean sorted by size, prior ~ rank^-exponent; exponent 0 asks for equal sizes.

temi train-heads CACHE --clusters 10 --out RUN --plugin power_law.py --set objective.regularizer=power-law \
    --set objective.regularizer_weight=0.1 --set objective.exponent=0.5
"""

import torch

from temi.pipeline.heads.objectives import PairBatch, Regularizer, by_autograd, register_regularizer


def power_law(batch: PairBatch):
    sizes = batch.mean(batch.student.exp()).sort(-1, descending=True).values.clamp_min(1e-30)
    rank = torch.arange(1, sizes.shape[1] + 1, dtype=sizes.dtype, device=sizes.device)
    prior = (-batch.settings["exponent"][:, None] * rank.log()).log_softmax(-1)
    return (sizes * (sizes.log() - prior)).sum(-1)


register_regularizer("power-law", Regularizer(by_autograd(power_law), settings={"exponent": 0.5}))
