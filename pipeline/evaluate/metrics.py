"""Scores against labels: pure functions of arrays."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import train_test_split

from temi.pipeline.features.neighbors import drop_self, nearest
from temi.pipeline.runs.label_free import size_scores
from temi.pipeline.start.agreement import contingency

KNN = 20  # neighbors that vote in the kNN ceiling
CONFIDENT = (50, 80, 90, 100)  # percent

Labels = Int[np.ndarray, " n"]
Embedding = Float[np.ndarray, "n D"]


def hungarian_accuracy(label: Labels, cluster: Labels) -> float:
    """Share of images right under the best one-to-one match of clusters and classes (ACC)."""
    table = contingency(label, cluster)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(label))


def purity(label: Labels, cluster: Labels) -> float:
    """Share of images right when every cluster takes its majority class: the many-to-one accuracy."""
    return float(contingency(label, cluster).max(0).sum() / len(label))


def cluster_scores(label: Labels, cluster: Labels, clusters: int) -> dict[str, float]:
    """ACC, NMI, AMI, ARI, purity, and the sizes of `size_scores`; rows with label -1 are left out of the first five.

    Purity is the many-to-one ACC: when clusters outnumber classes it is the figure to read.
    """
    known = label >= 0
    scores: dict[str, float] = {}
    if known.any():
        truth, found = label[known], cluster[known]
        scores = {
            "acc": hungarian_accuracy(truth, found),
            "nmi": float(normalized_mutual_info_score(truth, found)),
            "ami": float(adjusted_mutual_info_score(truth, found)),
            "ari": float(adjusted_rand_score(truth, found)),
            "purity": purity(truth, found),
        }
    return scores | size_scores(torch.from_numpy(cluster.astype(np.int64)), clusters).model_dump()


def confident_accuracy(label: Labels, cluster: Labels, confidence: Float[np.ndarray, " n"]) -> dict[str, float]:
    """ACC among the most confident 50, 80, 90 and 100 % of the labeled rows, under the match of all of them."""
    known = label >= 0
    if not known.any():
        return {}
    right = matched_right(label[known], cluster[known])[np.argsort(-confidence[known], kind="stable")]
    return {str(share): float(right[: max(1, round(len(right) * share / 100))].mean()) for share in CONFIDENT}


def matched_right(label: Labels, cluster: Labels) -> Bool[np.ndarray, " n"]:
    """Whether the class that a row's cluster is matched to, one to one by the Hungarian method, is its own."""
    table = contingency(label, cluster)
    row, column = linear_sum_assignment(table, maximize=True)
    names = dict(zip(np.unique(cluster)[column], np.unique(label)[row], strict=True))
    return np.array([names.get(c) == y for c, y in zip(cluster, label, strict=True)])


def knn_accuracy(
    train: Embedding, label: Labels, queries: Embedding | None = None, truth: Labels | None = None
) -> float:
    """Accuracy of a vote among the 20 nearest labeled rows, each weighed by its cosine (not below 0); leave-one-out on
    `train` where no queries are given.

    A ceiling, not a competitor: it reads the labels.
    """
    own = queries is None
    asked, wanted = (train, label) if queries is None or truth is None else (queries, truth)
    k = min(KNN, len(train) - 1)
    found, score = nearest(train, asked, k + own)
    if own:
        found, score = drop_self(np.arange(len(train)), found, score)
    return float((majority(label[found], np.maximum(score, 0)) == wanted).mean())


def majority(voters: Int[np.ndarray, "n K"], weight: Float[np.ndarray, "n K"]) -> Int64[np.ndarray, " n"]:
    """The label that weighs most among each row's voters; a tie goes to the lowest."""
    votes = np.zeros((len(voters), voters.max() + 1))
    np.add.at(votes, (np.arange(len(voters))[:, None], voters), weight)
    chosen: Int64[np.ndarray, " n"] = votes.argmax(1)
    return chosen


def probe_accuracy(
    train: Embedding, label: Labels, queries: Embedding | None = None, truth: Labels | None = None
) -> float:
    """Accuracy of logistic regression on standardized embeddings, trained on labels: the linear ceiling.

    Without queries: trained on a random half of `train` (stratified where classes allow), scored on the other half.
    What saw a single class says that one.
    """
    if queries is None or truth is None:
        counts = np.bincount(label)
        halves = train_test_split(
            train, label, test_size=0.5, random_state=0, stratify=label if counts[counts > 0].min() >= 2 else None
        )
        train, queries, label, truth = halves
    if (label == label[0]).all():
        return float((truth == label[0]).mean())
    mean, deviation = train.mean(0, dtype=np.float32), train.std(0, dtype=np.float32) + 1e-6
    model = LogisticRegression(C=0.01, max_iter=200, tol=1e-3)
    model.fit((train - mean) / deviation, label)
    return float((model.predict((queries - mean) / deviation) == truth).mean())
