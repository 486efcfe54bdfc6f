"""I-Con's debiased clustering (Alshammari et al., ICLR 2025, arXiv 2504.16929, section 3.3), a step at a time.

A share `debias` of every image's neighbors is anybody: the target kernel is (1 - a) p(j|i) + a / N, and the learned
one sum_c q(c|i) q(c|j) / (N p_c). Rows of a batch are in random order, so the row before is anybody.

temi train-heads CACHE --clusters 10 --out RUN --plugin debiased_icon.py --set objective.name=icon
"""

from temi.pipeline.heads.objectives import Objective, PairBatch, by_autograd, register_objective


def icon(batch: PairBatch):
    share = batch.settings["debias"][:, None]
    own = batch.student - batch.log_marginal[:, None]
    neighbor, anybody = ((own + other).logsumexp(-1) for other in (batch.partner, batch.partner.roll(1, 1)))
    return -((1 - share) * neighbor + share * anybody).mean(-1)


register_objective("icon", Objective(by_autograd(icon), settings={"debias": 0.2}))
