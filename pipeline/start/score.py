"""What tells a good partition from a bad one without labels: how much one end of an edge says of the other."""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int64

from temi.pipeline.start.graph import edge_counts


def edge_information(graph: sp.csr_array, label: Int64[np.ndarray, " N"]) -> float:
    """Mutual information, in nats, of the clusters at the two ends of an edge drawn by its weight.

    sum_ab p_ab log(p_ab / (p_a p_b)), p_ab the share of edge weight between a and b; up to a factor, the profile
    likelihood of the degree-corrected block model (Karrer and Newman, Phys. Rev. E 2011, equation 21).
    """
    joint = edge_counts(graph, label)
    joint /= joint.sum()
    return float(_p_log_p(joint) - 2 * _p_log_p(joint.sum(0)))


def _p_log_p(share: Float[np.ndarray, "..."]) -> float:
    share = share[share > 0]
    return float((share * np.log(share)).sum())
