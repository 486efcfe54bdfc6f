"""What a user would try instead: each baseline is a function of embeddings (N, D), a number of clusters and a seed.

All but TURTLE see rows of unit norm. UMAP and Leiden are extras, imported where they are used.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions, version

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import temi
from temi.pipeline.device import pick_device
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.metrics import majority
from temi.pipeline.extras import import_extra
from temi.pipeline.features.neighbors import exact_neighbors, nearest
from temi.pipeline.features.unit_rows import unit_rows
from temi.pipeline.plugins import blame
from temi.pipeline.progress import Progress
from temi.pipeline.registry import BASELINES
from temi.pipeline.start.communities import communities, merge_parts, search_resolution
from temi.pipeline.start.graph import fuzzy_graph

STARTS = 10  # of k-means on embeddings
UMAP_STARTS = 200  # of k-means on a UMAP layout; a tenth from MANY_CLUSTERS on
MANY_CLUSTERS = 500
SPHERICAL_ROUNDS = 100
GRAPH_NEIGHBORS = 15  # of the graphs that Ward and Leiden follow
# Smallest clusters that HDBSCAN tries: shares of the mean cluster, and sizes.
SMALLEST_SHARES, SMALLEST_SIZES = (0.1, 0.25, 0.5), (5, 10, 15, 30)
VOTERS = 20  # training rows that decide the cluster of a held-out row
TURTLE_STEPS, TURTLE_INNER, TURTLE_ROWS, TURTLE_LR, TURTLE_ENTROPY = 6000, 10, 10_000, 1e-3, 10.0

Embedding = Float[np.ndarray, "N D"]
Unit = Float32[np.ndarray, "N D"]
Labeling = Int64[np.ndarray, " N"]


def k_means(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """k-means, best of 10 k-means++ starts."""
    labels: Labeling = (
        KMeans(clusters, n_init=STARTS, random_state=seed).fit_predict(unit_rows(embedding)).astype(np.int64)
    )
    return labels


def spherical_k_means(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """k-means by cosine: centers have unit norm (Dhillon and Modha 2001); the best of 10 k-means++ starts."""
    x = unit_rows(embedding)
    runs = [_spherical(x, clusters, seed * STARTS + start) for start in range(STARTS)]
    return max(runs, key=lambda run: run[0])[1]


def _spherical(x: Unit, clusters: int, seed: int) -> tuple[float, Labeling]:
    """Mean cosine to the own center, and labels, of one start."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        center = unit_rows(KMeans(clusters, n_init=1, max_iter=1, random_state=seed).fit(x).cluster_centers_)
    label = np.full(len(x), -1)
    for _ in range(SPHERICAL_ROUNDS):
        before, label = label, (x @ center.T).argmax(1)
        if (before == label).all():
            break
        member = sp.csr_array((np.ones(len(x), np.float32), (label, np.arange(len(x)))), shape=(clusters, len(x)))
        used = np.bincount(label, minlength=clusters) > 0
        center[used] = unit_rows(member @ x)[used]  # a cluster that lost all its rows stays where it was
    return float((x * center[label]).sum(1).mean()), label.astype(np.int64)


def umap_k_means(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """UMAP to three dimensions (cosine, 10 neighbors), then k-means, best of 200 starts (20 from 500 clusters on)."""
    y = _umap(embedding, seed, n_components=3, n_neighbors=10)
    starts = UMAP_STARTS if clusters < MANY_CLUSTERS else UMAP_STARTS // 10
    labels: Labeling = KMeans(clusters, n_init=starts, random_state=seed).fit_predict(y).astype(np.int64)
    return labels


def ward(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """Ward's hierarchy along the 15-neighbor graph: the tree of all pairs needs N^2 memory. `seed` has no effect."""
    x = unit_rows(embedding)
    index, _ = exact_neighbors(x, min(GRAPH_NEIGHBORS, len(x) - 1))
    edges = (np.repeat(np.arange(len(x)), index.shape[1]), index.ravel())
    graph = sp.csr_matrix((np.ones(index.size), edges), shape=(len(x), len(x)))
    with warnings.catch_warnings():
        # A graph in several parts is joined by scikit-learn, which says so: that is what is wanted.
        warnings.filterwarnings("ignore", message="the number of connected components")
        tree = AgglomerativeClustering(clusters, connectivity=graph.maximum(graph.T))
        labels: Labeling = tree.fit_predict(x).astype(np.int64)
    return labels


def hdbscan(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """HDBSCAN on a UMAP layout of five dimensions, with several smallest sizes of a cluster; the result whose number of
    clusters is nearest to `clusters` is kept.

    Rows that it calls noise join the majority of their 15 nearest rows in a cluster, as every other method must assign
    all rows.
    """
    y = _umap(embedding, seed, n_components=5, n_neighbors=GRAPH_NEIGHBORS, min_dist=0.0)
    sizes = sorted({max(2, round(share * len(y) / clusters)) for share in SMALLEST_SHARES} | set(SMALLEST_SIZES))
    found = [HDBSCAN(min_cluster_size=size, copy=True).fit_predict(y) for size in sizes if size < len(y)]
    label = min(found, key=lambda own: abs(int(own.max()) + 1 - clusters)).astype(np.int64)
    return without_noise(y, label)


def without_noise(y: Float32[np.ndarray, "N P"], label: Labeling) -> Labeling:
    """Rows labeled -1 join the majority of their nearest rows that are not; all are 0 where every row is noise."""
    noise = label < 0
    if noise.all():
        return np.zeros(len(y), np.int64)
    label = label.copy()
    voters = KNeighborsClassifier(min(GRAPH_NEIGHBORS, int((~noise).sum()))).fit(y[~noise], label[~noise])
    if noise.any():
        label[noise] = voters.predict(y[noise])
    return label


def plscan(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """PLSCAN (Bot et al. 2025) in UMAP to five dimensions; it finds its own number, `clusters` has no effect."""
    y = _umap(embedding, seed, n_components=5, n_neighbors=GRAPH_NEIGHBORS, min_dist=0.0)
    label = import_extra("fast_plscan", "baselines").PLSCAN().fit_predict(y.astype(np.float32))
    return without_noise(y, np.asarray(label, np.int64))


def evoc(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """EVoC (McInnes), asked for about so many clusters; noise joins its nearest rows."""
    x = unit_rows(embedding)
    found = import_extra("evoc", "baselines").EVoC(approx_n_clusters=clusters, random_state=seed).fit_predict(x)
    return without_noise(x, np.asarray(found, np.int64))


def louvain(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """Louvain (Blondel et al. 2008) on the fuzzy 15-neighbor graph, its resolution searched, the surplus merged."""
    return communities(_neighbor_graph(embedding), clusters, seed)


def spectral(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """Spectral clustering (Ng, Jordan, Weiss 2001) of the fuzzy 15-neighbor graph, assigned by cluster_qr."""
    graph = sp.csr_matrix(_neighbor_graph(embedding))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        model = SpectralClustering(clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
        labels: Labeling = model.fit_predict(graph).astype(np.int64)
    return labels


def _neighbor_graph(embedding: Embedding) -> sp.csr_array:
    index, similarity = exact_neighbors(unit_rows(embedding), min(GRAPH_NEIGHBORS, len(embedding) - 1))
    return fuzzy_graph(index, 1 - similarity.astype(np.float32))


def leiden(embedding: Embedding, clusters: int, seed: int) -> Labeling:
    """Leiden (Traag et al. 2019) on the fuzzy 15-neighbor graph, its resolution searched, the surplus merged."""
    return leiden_communities(_neighbor_graph(embedding), clusters, seed)


def leiden_communities(graph: sp.csr_array, clusters: int, seed: int) -> Labeling:
    """What `communities` finds by Louvain (pipeline/start/communities.py), by leidenalg."""
    igraph, leidenalg = import_extra("igraph", "leiden"), import_extra("leidenalg", "leiden")
    rows, edges = graph.shape[0], sp.coo_array(sp.triu(graph, 1))
    known = igraph.Graph(n=rows, edges=np.c_[edges.row, edges.col].tolist())
    kind, weights = leidenalg.RBConfigurationVertexPartition, edges.data.tolist()

    def cut(resolution: float) -> Labeling:
        found = leidenalg.find_partition(known, kind, weights=weights, resolution_parameter=resolution, seed=seed)
        return np.asarray(found.membership, np.int64)

    return merge_parts(search_resolution(cut, rows, clusters), graph, clusters)


def turtle(
    spaces: Embedding | Sequence[Embedding],
    clusters: int,
    seed: int,
    *,
    steps: int = TURTLE_STEPS,
    device: str = "auto",
) -> Labeling:
    """TURTLE (Gadetsky et al., ICML 2024), first order, on one or several raw feature spaces of the same rows.

    Labels are softmax(weight-normed linear) of each space, averaged over the spaces; they are made such that
    linear classifiers, fitted for ten steps to them, agree with them.
    """
    arrays = [spaces] if isinstance(spaces, np.ndarray) else spaces
    x = [torch.from_numpy(space.astype(np.float32)).to(pick_device(device)) for space in arrays]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoders = [parametrizations.weight_norm(nn.Linear(space.shape[1], clusters)).to(space.device) for space in x]
        adam = torch.optim.Adam([p for encoder in encoders for p in encoder.parameters()], lr=TURTLE_LR)
        with Progress("TURTLE", total=steps, unit="step") as progress:
            for _ in range(steps):
                rows = torch.randperm(len(x[0]))[:TURTLE_ROWS].to(x[0].device)
                batch = [space[rows] for space in x] if len(rows) < len(x[0]) else x
                adam.zero_grad()
                loss = turtle_loss(batch, [e(space).softmax(1) for e, space in zip(encoders, batch, strict=True)])
                torch.autograd.backward(loss)
                adam.step()
                progress.advance()
    with torch.no_grad():
        task = torch.stack([e(space).softmax(1) for e, space in zip(encoders, x, strict=True)]).mean(0)
    labels: Labeling = task.argmax(1).cpu().numpy()
    return labels


def turtle_loss(spaces: Sequence[Float[Tensor, "B _"]], tasks: Sequence[Float[Tensor, "B C"]]) -> Float[Tensor, ""]:
    """Sum over spaces of cross-entropy of a fitted classifier to the mean task, minus 10 times each task's entropy.

    First order: nothing is differentiated through the fit of the classifier.
    """
    task = torch.stack(list(tasks)).mean(0)
    fit = sum(F.cross_entropy(_fitted_logits(space, task.detach()), task) for space in spaces)
    entropy = sum(torch.special.entr(own.mean(0)).sum() for own in tasks)
    return torch.as_tensor(fit - TURTLE_ENTROPY * entropy)


def _fitted_logits(x: Float[Tensor, "B D"], target: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Logits, without gradient, of a fresh linear classifier after ten Adam steps to soft targets."""
    linear = nn.Linear(x.shape[1], target.shape[1]).to(x.device)
    adam = torch.optim.Adam(linear.parameters(), lr=TURTLE_LR)
    for _ in range(TURTLE_INNER):
        adam.zero_grad()
        torch.autograd.backward(F.cross_entropy(linear(x), target))
        adam.step()
    with torch.no_grad():
        logits: Tensor = linear(x)
    return logits


@dataclass(frozen=True)
class Baseline:
    """What `--baselines` names.

    Attributes
    ----------
    title : in tables
    cluster : (N, D) embeddings, a number of clusters and a seed -> (N,) labels
    extra, modules : the extra of this package that brings what it needs, and these modules; none: nothing more
    centered : whether a new row belongs to the nearest center; else its neighbors vote
    least : rows that it needs
    """

    title: str
    cluster: Callable[[Embedding, int, int], Labeling]
    extra: str = ""
    modules: tuple[str, ...] = ()
    centered: bool = False
    least: int = 2


def register_baseline(name: str, baseline: Baseline) -> None:
    """Make `baseline` available as ``--baselines NAME``."""
    BASELINES.register(name, baseline)


register_baseline("kmeans", Baseline("k-means", k_means, centered=True))
register_baseline("spherical", Baseline("spherical k-means", spherical_k_means, centered=True))
register_baseline("umap", Baseline("UMAP + k-means", umap_k_means, "umap", ("umap",), least=5))
register_baseline("ward", Baseline("Ward", ward))
register_baseline("hdbscan", Baseline("UMAP + HDBSCAN", hdbscan, "umap", ("umap",), least=7))
register_baseline("plscan", Baseline("UMAP + PLSCAN", plscan, "baselines", ("umap", "fast_plscan"), least=7))
register_baseline("evoc", Baseline("EVoC", evoc, "baselines", ("evoc",), least=5))
register_baseline("spectral", Baseline("spectral clustering", spectral, least=3))
register_baseline("louvain", Baseline("Louvain", louvain))
register_baseline("leiden", Baseline("Leiden", leiden, "leiden", ("igraph", "leidenalg")))
register_baseline("turtle", Baseline("TURTLE", turtle))


def run_baseline(
    name: str, train: Embedding, clusters: int, seed: int = 0, widths: Sequence[int] = ()
) -> tuple[Labeling, float]:
    """Clusters of `train`, and the seconds that it took.

    `widths` are those of the spaces of a joined cache: TURTLE sees them one by one, all others see them as one.
    UserError where the baseline returns no cluster for every row, or is a user's own and fails.
    """
    began = time.perf_counter()
    if name == "turtle" and len(widths) > 1:
        cluster = turtle(split_spaces(train, widths), clusters, seed)
    else:
        find = BASELINES[name].cluster
        with blame(f"the baseline {name!r}", find):
            found: object = find(train, clusters, seed)
        cluster = _checked(found, name, len(train), clusters)
    return cluster, time.perf_counter() - began


def extended(name: str, train: Embedding, cluster: Labeling, others: Sequence[Embedding]) -> list[Labeling]:
    """Clusters of other rows: that of the nearest center (k-means, spherical k-means), or of most of the 20 nearest
    training rows.
    """
    extend = nearest_mean if BASELINES[name].centered else neighbor_vote
    return [extend(unit_rows(train), cluster, unit_rows(other)) for other in others]


def _checked(found: object, name: str, rows: int, clusters: int) -> Labeling:
    """What the baseline `name` returned, as int64."""
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or found.shape != (rows,):
        came = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise UserError(f"the baseline {name!r} returned {came}; return an array of {rows} integers, one per row")
    if found.min() < 0:
        raise UserError(f"the baseline {name!r} returned the cluster {found.min()}; put every row into one from 0 on")
    most = max(rows, clusters)  # a table has a place for each id up to the largest
    if found.max() >= most:
        raise UserError(f"the baseline {name!r} returned the cluster {found.max()}; number them from 0 to {most - 1}")
    return found.astype(np.int64, copy=False)


def split_spaces(embedding: Embedding, widths: Sequence[int]) -> list[Float32[np.ndarray, "N _"]]:
    """The spaces of joined embeddings, times sqrt(D): TURTLE's ten steps would hardly move on rows of unit norm."""
    ends = np.cumsum(widths)[:-1]
    return [
        space.astype(np.float32) * width**0.5 for space, width in zip(np.split(embedding, ends, 1), widths, strict=True)
    ]


def nearest_mean(train: Unit, cluster: Labeling, rows: Float32[np.ndarray, "n D"]) -> Int64[np.ndarray, " n"]:
    """Cluster of `train` whose mean is nearest to each row."""
    ids, position = np.unique(cluster, return_inverse=True)
    member = sp.csr_array((np.ones(len(train)), (position, np.arange(len(train)))))
    mean = (member @ train) / np.bincount(position)[:, None]
    found: Int64[np.ndarray, " n"] = ids[((mean * mean).sum(1) - 2 * rows @ mean.T).argmin(1)]
    return found


def neighbor_vote(train: Unit, cluster: Labeling, rows: Float32[np.ndarray, "n D"]) -> Int64[np.ndarray, " n"]:
    """Majority cluster of the 20 nearest training rows by cosine; a tie goes to the lowest id."""
    index, _ = nearest(train, rows, min(VOTERS, len(train)))
    return majority(cluster[index], np.ones(index.shape))


installed = cache(packages_distributions)  # it looks through all that is installed: once, and not for each baseline


def version_of(name: str) -> str | None:
    """What finds the baseline's clusters, by the versions of its packages; None of a plugin's, which may be edited."""
    baseline = BASELINES[name]
    if not baseline.cluster.__module__.startswith(f"{temi.__name__}."):
        return None
    packages = installed() if baseline.modules else {}
    needed = {"scikit-learn", *(package for module in baseline.modules for package in packages[module])}
    return ", ".join([f"temi {temi.__version__}", *(f"{package} {version(package)}" for package in sorted(needed))])


def import_needed(name: str) -> None:
    """Import what the baseline `name` needs; UserError where an extra is not installed."""
    for module in BASELINES[name].modules:
        import_extra(module, BASELINES[name].extra)


def _umap(embedding: Embedding, seed: int, *, n_neighbors: int, **settings: float) -> Float32[np.ndarray, "N P"]:
    """A UMAP layout by cosine of unit rows."""
    umap = import_extra("umap", "umap")
    fewer = min(n_neighbors, len(embedding) - 1)
    model = umap.UMAP(n_neighbors=fewer, metric="cosine", random_state=seed, n_jobs=1, **settings)
    layout: Float32[np.ndarray, "N P"] = np.asarray(model.fit_transform(unit_rows(embedding)), np.float32)
    return layout
