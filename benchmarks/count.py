"""The number of clusters: estimates without labels against the number of classes, on many real sets.

    python benchmarks/count.py --data FOLDER --results count.jsonl [--sets a,b]
    python benchmarks/count.py --results count.jsonl --table

FOLDER is as in ``benchmarks/sets.py``. Rivals: the peak of the silhouette of k-means in UMAP, the largest gap of the
normalized Laplacian's eigenvalues, and what Louvain at resolution 1, HDBSCAN, PLSCAN and EVoC find with their defaults.
"""

import argparse
import json
import warnings
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from evoc import EVoC
from fast_plscan import PLSCAN
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import eigsh
from sets import options, read_rows, read_sets, run_or_show
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import silhouette_score
from umap import UMAP

from temi.pipeline.config import StartConfig
from temi.pipeline.features.features import Features
from temi.pipeline.features.unit_rows import unit_rows
from temi.pipeline.progress import quiet
from temi.pipeline.start.communities import find_communities
from temi.pipeline.start.count import HIGHEST, LOWEST, ROWS_PER_CLUSTER, candidates, estimate_clusters
from temi.pipeline.start.spaces import neighbor_counts, space_graphs

CLOSE = 1.5  # an estimate within this ratio of the number of classes counts as near


def layout(x: np.ndarray, dimensions: int) -> np.ndarray:
    """UMAP by cosine, 15 neighbors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = UMAP(n_components=dimensions, metric="cosine", min_dist=0.0, random_state=0, n_jobs=1)
        return np.asarray(model.fit_transform(x), np.float32)


def by_silhouette(x: np.ndarray) -> int:
    """The k of the highest silhouette of k-means in three dimensions, over the numbers that the package tries."""
    y = layout(x, 3)
    numbers = candidates(LOWEST, min(HIGHEST, len(x) // ROWS_PER_CLUSTER))
    labels = [KMeans(k, n_init=1, random_state=0).fit_predict(y) for k in numbers]
    scores = [silhouette_score(y, label, sample_size=min(2_000, len(y)), random_state=0) for label in labels]
    return numbers[int(np.argmax(scores))]


def by_eigengap(graph: sp.csr_array) -> int:
    """The largest gap of the normalized Laplacian's eigenvalues after the first (von Luxburg 2007)."""
    most = min(HIGHEST, graph.shape[0] // ROWS_PER_CLUSTER)
    normal = sp.eye_array(graph.shape[0]) - laplacian(graph.astype(np.float64), normed=True)
    value = 1 - np.sort(eigsh(normal, k=most + 1, which="LA", return_eigenvectors=False))[::-1]
    return int(np.diff(value)[1:].argmax()) + 2


def found(label: np.ndarray) -> int:
    """Clusters without noise."""
    return int(label.max()) + 1


def estimates(embedding: np.ndarray, views: np.ndarray | None) -> dict[str, Callable[[], int]]:
    """Every way to a number."""
    features, x = Features.of_array(embedding.astype(np.float32), views).distinct(), unit_rows(embedding)
    [graph] = space_graphs(features, "center", [max(neighbor_counts(len(features), LOWEST))])
    return {
        "default": lambda: estimate_clusters(features, StartConfig()).clusters,
        "Louvain, resolution 1": lambda: found(find_communities(graph, 1.0, seed=0)),
        "silhouette on UMAP": lambda: by_silhouette(x),
        "eigengap": lambda: by_eigengap(graph),
        "UMAP + HDBSCAN": lambda: found(HDBSCAN(copy=True).fit_predict(layout(x, 5))),
        "UMAP + PLSCAN": lambda: found(np.asarray(PLSCAN().fit_predict(layout(x, 5)))),
        "EVoC": lambda: found(np.asarray(EVoC(random_state=0).fit_predict(x))),
    }


def measure(arguments: argparse.Namespace) -> None:
    """Append a line for every set and way that the results do not hold yet."""
    done = {(row["set"], row["method"]) for row in read_rows(arguments.results)}
    for name, embedding, views, label in read_sets(arguments.data, arguments.sets):
        with quiet():
            for method, estimate in estimates(embedding, views).items():
                if (name, method) in done:
                    continue
                row = {"set": name, "classes": int(label.max()) + 1, "method": method, "clusters": estimate()}
                with arguments.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def table(rows: list[dict[str, str | int]]) -> str:
    """A set a line with every estimate, then the median ratio, the share near the truth and the worst ratio."""
    methods, sets = list(dict.fromkeys(r["method"] for r in rows)), list(dict.fromkeys(r["set"] for r in rows))
    found = {(row["set"], row["method"]): int(row["clusters"]) for row in rows}
    truth = {row["set"]: int(row["classes"]) for row in rows}
    lines = [f"| set | classes | {' | '.join(map(str, methods))} |", "|" + "---|" * (len(methods) + 2)]
    for name in sets:
        lines.append(f"| {name} | {truth[name]} | {' | '.join(str(found[name, method]) for method in methods)} |")
    ratio = {method: np.array([found[name, method] / truth[name] for name in sets]) for method in methods}
    off = {method: np.maximum(own, 1 / np.maximum(own, 1e-9)) for method, own in ratio.items()}
    summary = {
        "median ratio": {method: f"{np.median(own):.2f}" for method, own in ratio.items()},
        f"within {CLOSE}": {method: f"{(own <= CLOSE).mean():.0%}" for method, own in off.items()},
        "worst, times off": {method: f"{own.max():.1f}" for method, own in off.items()},
    }
    lines += [
        f"| **{name}** | | {' | '.join(cells[method] for method in methods)} |" for name, cells in summary.items()
    ]
    return "\n".join(lines)


def main() -> None:
    run_or_show(options(__doc__).parse_args(), measure, table)


if __name__ == "__main__":
    main()
