"""Mutual information of the clusters of a pair (IIC, Ji et al., ICCV 2019, equation 3), as an objective.

temi train-heads CACHE --clusters 10 --out RUN --plugin mutual_information.py --set objective.name=iic
"""

import torch

from temi.pipeline.heads.objectives import Objective, PairBatch, by_autograd, register_objective


def iic(batch: PairBatch):
    own = torch.einsum("gmc,gmd->gcd", batch.student.exp(), batch.partner.exp()) / batch.scores.shape[1]
    joint = own + (batch.average(own.detach()) - own.detach())  # over all processes that share the batch
    joint = ((joint + joint.mT) / 2).clamp_min(1e-30)
    marginal = joint.sum(-1).log()
    return -(joint * (joint.log() - marginal[:, :, None] - marginal[:, None])).sum((1, 2))


register_objective("iic", Objective(by_autograd(iic)))
