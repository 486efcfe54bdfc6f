"""Every image sure of its cluster, all clusters in use: mean H(q) - H(mean q), minus the information of RIM.

Krause, Perona and Gomes, "Discriminative Clustering by Regularized Information Maximization", NeurIPS 2010, equation 2.

temi train-heads CACHE --clusters 10 --out RUN --plugin entropies.py --set objective.regularizer=entropies \
    --set objective.regularizer_weight=0.1
"""

from temi.pipeline.heads.objectives import PairBatch, Regularizer, by_autograd, register_regularizer


def entropies(batch: PairBatch):
    probability = batch.student.exp()
    mean = batch.mean(probability).clamp_min(1e-30)
    return -(probability * batch.student).sum(-1).mean(-1) + (mean * mean.log()).sum(-1)


register_regularizer("entropies", Regularizer(by_autograd(entropies)))
