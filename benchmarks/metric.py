"""Metrics that views or neighbors teach beside the features as cached: neighbors of one class, and what is found there.

    python benchmarks/metric.py --data FOLDER --results metric.jsonl [--sets views/dtd10,dtd10]
    python benchmarks/metric.py --results metric.jsonl --table

A set with views (benchmarks/sets.py says what FOLDER holds) is measured by all metrics, one without by those that need
none. `views N` learns from N views of each image; `ridge by retrieval` takes the ridge by which views that were left
out find their images best among all others. The nonlinear maps are trained on pairs with one hidden layer of 512:
by InfoNCE (van den Oord et al., arXiv 1807.03748, temperature 0.1) or VICReg (Bardes et al., ICLR 2022, weights 25, 25,
1), 600 steps of 256 pairs, and what they map to is compared by cosine. Pairs are an image and one of its views, two of
its views, or an image and a mutual neighbor. Labels are read by the scoring alone.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sets import options, read_rows, read_sets, run_or_show
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from temi.pipeline.evaluate.baselines import run_baseline
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.features.neighbors import exact_neighbors
from temi.pipeline.features.scaling import Moments, Scaling, signed_root
from temi.pipeline.features.view_metric import view_directions
from temi.pipeline.progress import quiet

STEPS, PAIRS, HIDDEN, OUT, TEMPERATURE = 600, 256, 512, 64, 0.1
NEAR, PURE = 5, 15
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
BASELINES = ("kmeans", "leiden")
Pairs = Callable[[np.random.Generator], tuple[Tensor, Tensor]]


def scaled(kind: str) -> Callable[..., np.ndarray]:
    return lambda x, views: Scaling.fit(kind, Moments(x, views))(x).numpy()


def of_views(count: int) -> Callable[..., np.ndarray]:
    return lambda x, views: scaled("views")(x, views[:, :count])


def retrieving(x: Tensor, views: Tensor) -> np.ndarray:
    """The linear metric of all views, its ridge chosen by the mean reciprocal rank of the image of a left-out view."""
    seen = signed_root(torch.cat([x[:, None], views], 1).float())
    seen -= seen[:, 0].mean(0)

    def found(ridge: float) -> float:
        directions = view_directions([seen[:, :-1]], ridge).float()
        image, left_out = (F.normalize(seen[:, place] @ directions, dim=-1) for place in (0, -1))
        cosine = left_out @ image.T
        return float((1 / (1 + (cosine > cosine.diagonal()[:, None]).sum(1))).mean())

    ridge = max(RIDGES, key=found)
    return F.normalize(seen[:, 0] @ view_directions([seen], ridge).float(), dim=-1).numpy()


def mutual(x: Tensor) -> np.ndarray:
    """(P, 2) pairs of rows that are among each other's nearest."""
    with quiet():
        index, _ = exact_neighbors(scaled("root")(x, None), NEAR)
    one, other = np.repeat(np.arange(len(x)), NEAR), index.ravel()
    both = set(zip(other.tolist(), one.tolist(), strict=True))
    return np.array([pair for pair in zip(one.tolist(), other.tolist(), strict=True) if pair in both])


def of_neighbors(x: Tensor, views: Tensor | None) -> np.ndarray:
    """The linear metric of views, from mutual neighbors in the place of two views."""
    pairs, root = torch.from_numpy(mutual(x)), signed_root(x.float())
    directions = view_directions([root[pairs]]).float()
    return F.normalize((root - root.mean(0)) @ directions, dim=-1).numpy()


def info_nce(a: Tensor, b: Tensor) -> Tensor:
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return F.cross_entropy(a @ b.T / TEMPERATURE, torch.arange(len(a)))


def vicreg(a: Tensor, b: Tensor) -> Tensor:
    def spread(z: Tensor) -> Tensor:
        z = z - z.mean(0)
        covariance = z.T @ z / (len(z) - 1)
        off = covariance - covariance.diag().diag()
        return 25 * (1 - (z.var(0) + 1e-4).sqrt()).relu().mean() + (off**2).sum() / z.shape[1]

    return 25 * F.mse_loss(a, b) + spread(a) + spread(b)


def trained(loss: Callable[[Tensor, Tensor], Tensor], source: str) -> Callable[..., np.ndarray]:
    """What a nonlinear map makes of the rows, trained on pairs from `source`."""

    def fit(x: Tensor, views: Tensor | None) -> np.ndarray:
        draw, inputs, bank = drawing(x, views, source)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.BatchNorm1d(HIDDEN), nn.GELU(), nn.Linear(HIDDEN, OUT))
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
        random = np.random.default_rng(0)
        for _ in range(STEPS):
            one, other = draw(random)
            optimizer.zero_grad()
            loss(net(bank[one]), net(bank[other])).backward()
            optimizer.step()
        with torch.no_grad():
            return F.normalize(net.eval()(inputs), dim=-1).numpy()

    return fit


def drawing(x: Tensor, views: Tensor | None, source: str) -> tuple[Pairs, Tensor, Tensor]:
    """How pairs are drawn as rows of a bank, the rows that are mapped in the end, and the bank."""
    scale = Scaling.fit("root", Moments(x))
    own = scale(x)
    if source == "neighbors":
        pairs = torch.from_numpy(mutual(x))
        return lambda random: tuple(pairs[random.integers(len(pairs), size=PAIRS)].T), own, own
    assert views is not None
    versions = 1 + views.shape[1]
    bank = scale(torch.cat([x[:, None], views], 1)).flatten(0, 1)

    def draw(random: np.random.Generator) -> tuple[Tensor, Tensor]:
        image = random.choice(len(x), min(PAIRS, len(x)), replace=False)
        one = random.integers(versions, size=len(image))
        other = (one + random.integers(1, versions, size=len(image))) % versions
        return torch.from_numpy(image * versions + one), torch.from_numpy(image * versions + other)

    return draw, own, bank


WITHOUT = {
    "as cached, unit norm": scaled("l2"),
    "centered": scaled("center"),
    "whitened": scaled("whiten50"),
    "linear, mutual neighbors": of_neighbors,
    "InfoNCE, mutual neighbors": trained(info_nce, "neighbors"),
    "VICReg, mutual neighbors": trained(vicreg, "neighbors"),
}
WITH = {
    "linear, 1 view": of_views(1),
    "linear, 2 views": of_views(2),
    "linear, 3 views": of_views(3),
    "linear, ridge by retrieval": retrieving,
    "joined (one space of the default)": scaled("joined"),
    "InfoNCE, views": trained(info_nce, "views"),
    "VICReg, views": trained(vicreg, "views"),
}


def scores(z: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """kNN@1, purity of 15 neighbors, and ACC, NMI of k-means and Leiden."""
    with quiet():
        index, _ = exact_neighbors(z, PURE)
    found = {"knn": np.mean(label[index[:, 0]] == label), "purity": np.mean(label[index] == label[:, None])}
    for name in BASELINES:
        cluster = run_baseline(name, z, int(label.max()) + 1)[0]
        found |= {f"{name} acc": hungarian_accuracy(label, cluster)}
        found |= {f"{name} nmi": normalized_mutual_info_score(label, cluster)}
    return {name: round(100 * float(value), 2) for name, value in found.items()}


def cases(views: np.ndarray | None) -> Iterator[tuple[str, Callable[..., np.ndarray]]]:
    yield from (WITHOUT if views is None else WITHOUT | WITH).items()


def measure(arguments: argparse.Namespace) -> None:
    """Append a line for every set and metric that the results do not hold yet."""
    done = {(row["set"], row["metric"]) for row in read_rows(arguments.results)}
    for name, embedding, views, label in read_sets(arguments.data, arguments.sets):
        x = torch.from_numpy(embedding)
        seen = None if views is None else torch.from_numpy(views)
        for title, make in cases(views):
            if (name, title) in done:
                continue
            began = time.process_time()
            z = np.ascontiguousarray(make(x, seen), dtype=np.float32)
            row = {"set": name, "metric": title, "cpu_seconds": round(time.process_time() - began, 2)}
            row |= scores(z, label)
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of means, over the sets with views and over those without."""
    columns = ["knn", "purity", *(f"{name} {score}" for name in BASELINES for score in ("acc", "nmi"))]
    lines = [f"| sets | metric | {' | '.join(columns)} | CPU s |", "|" + "---|" * (len(columns) + 3)]
    for kind, named in (("with views", WITHOUT | WITH), ("without", WITHOUT)):
        for title in named:
            own = [row for row in rows if row["metric"] == title and ("/" in row["set"]) == (kind == "with views")]
            if own:
                cells = [f"{np.mean([row[column] for row in own]):.1f}" for column in (*columns, "cpu_seconds")]
                lines.append(f"| {len(own)} {kind} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_or_show(options(__doc__).parse_args(), measure, table)
