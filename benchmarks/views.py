"""What the cached views of images are worth, and for what: one JSON line a set and use, and the tables made of them.

    python benchmarks/views.py --data FOLDER --results views.jsonl [--sets views/dtd10,...] [--views 2]
    python benchmarks/views.py --results views.jsonl --table

FOLDER holds ``views/NAME.npz`` with ``embedding`` (N, D), ``views`` (N, V, D) and ``label`` (N,). Labels are read by
the scoring, and by the choice of the classes that are left out where novel images are to be told. One seed.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from sets import options, read_rows, read_sets, run_or_show
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score
from trust import LEFT_OUT, expected_error

from temi.pipeline.config import load_config
from temi.pipeline.evaluate.metrics import confident_accuracy, hungarian_accuracy, matched_right
from temi.pipeline.features.features import Features
from temi.pipeline.progress import quiet
from temi.pipeline.runs.fit import fit_model
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.novelty import Novelty

Rows, Views = np.ndarray, np.ndarray
SHARES = ("50", "80")


def fit(embedding: Rows, views: Views | None, clusters: int, *settings: str) -> ClusterModel:
    """The default, with other settings where they are given."""
    with quiet():
        return fit_model(
            Features.of_array(embedding, views), load_config(None, [f"heads.clusters={clusters}", *settings])
        )


def probability(model: ClusterModel, embedding: Rows, views: Views | None = None) -> Rows:
    """Of every cluster, (N, C); with views the mean over an image and its views."""
    seen = [embedding] if views is None else [embedding, *np.moveaxis(views, 1, 0)]
    return np.mean([model.predict_proba(torch.from_numpy(np.ascontiguousarray(rows))).numpy() for rows in seen], 0)


def averaged(embedding: Rows, views: Views) -> Rows:
    """The mean of an image's embedding and those of its views, all at unit norm."""
    seen = np.concatenate([embedding[:, None], views], 1).astype(np.float32)
    return (seen / np.linalg.norm(seen, axis=2, keepdims=True)).mean(1)


def in_graph(embedding: Rows, views: Views, clusters: int) -> Rows:
    """Every view is a row of its own in graphs, layouts, cuts and training; an image is what its rows say together."""
    seen = np.concatenate([embedding[:, None], views], 1)
    model = fit(seen.reshape(-1, seen.shape[2]), None, clusters)
    return probability(model, embedding, views)


USES: dict[str, Callable[[Rows, Views, int], Rows]] = {
    "none": lambda x, v, c: probability(fit(x, None, c), x),
    "metric (default)": lambda x, v, c: probability(fit(x, v, c), x),
    "metric, and partners": lambda x, v, c: probability(fit(x, v, c, "pairs.source=neighbors+views"), x),
    "metric, partners alone": lambda x, v, c: probability(fit(x, v, c, "pairs.source=views"), x),
    "metric, mean of probabilities": lambda x, v, c: probability(fit(x, v, c), x, v),
    "mean embedding": lambda x, v, c: probability(fit(averaged(x, v), None, c), averaged(x, v)),
    "metric, mean embedding": lambda x, v, c: probability(fit(averaged(x, v), v, c), averaged(x, v)),
    "rows of the graph": in_graph,
}


def doubts(model: ClusterModel, embedding: Rows, views: Views) -> dict[str, Rows]:
    """How little sure one is of every image: without views; by them; both."""
    own = probability(model, embedding)
    seen = np.stack([own, *(probability(model, view) for view in np.moveaxis(views, 1, 0))])
    mean = seen.mean(0)
    entropy = [-(p * np.log(p + 1e-12)).sum(-1) for p in (mean, seen)]
    found = {"doubt": 1 - own.max(1), "doubt of the mean": 1 - mean.max(1), "spread": entropy[0] - entropy[1].mean(0)}
    return found | {"doubt and spread": rankdata(found["doubt"]) + rankdata(found["spread"])}


def sureness(embedding: Rows, views: Views, label: Rows) -> dict[str, float]:
    """ECE of the confidence without and with views, and the ACC of the images that each doubt doubts least."""
    model = fit(embedding, views, int(label.max()) + 1)
    own, mean = probability(model, embedding), probability(model, embedding, views)
    cluster = own.argmax(1)
    row = {
        f"ece {name}": expected_error(matched_right(label, p.argmax(1)), p.max(1))
        for name, p in {"doubt": own, "doubt of the mean": mean}.items()
    }
    for name, doubt in doubts(model, embedding, views).items():
        accuracy = confident_accuracy(label, cluster, -doubt)
        row |= {f"acc {share} {name}": accuracy[share] for share in SHARES}
    return row


def novelty(embedding: Rows, views: Views, label: Rows) -> dict[str, float]:
    """AUROC of telling the classes that were left out, as in ``benchmarks/trust.py``."""
    random, classes = np.random.default_rng(0), int(label.max()) + 1
    strange = np.isin(label, random.choice(classes, max(1, round(LEFT_OUT * classes)), replace=False))
    trained = ~strange & (random.random(len(label)) < 0.5)
    model = fit(embedding[trained], views[trained], len(np.unique(label[trained])))
    tested = ~trained
    near = Novelty.fit(model.scaling(torch.from_numpy(embedding[trained])))
    distance = -near.similarity(model.scaling(torch.from_numpy(embedding[tested])).numpy())
    scores = {"distance": distance, **doubts(model, embedding[tested], views[tested])}
    scores["distance and doubt"] = rankdata(distance) + rankdata(scores["doubt"])
    scores["distance and spread"] = rankdata(distance) + rankdata(scores["spread"])
    return {f"auroc {name}": float(roc_auc_score(strange[tested], score)) for name, score in scores.items()}


def measure(arguments: argparse.Namespace) -> None:
    """Append a line for every set and use that the results do not hold yet."""
    done = {(row["set"], row["use"]) for row in read_rows(arguments.results)}
    for name, embedding, views, label in read_sets(arguments.data, arguments.sets):
        if views is None:
            continue
        views, clusters = views[:, : arguments.views], int(label.max()) + 1
        for use in [*USES, "trust"]:
            if (name, use) in done:
                continue
            if use == "trust":
                found = sureness(embedding, views, label) | novelty(embedding, views, label)
            else:
                cluster = USES[use](embedding, views, clusters).argmax(1)
                nmi = float(normalized_mutual_info_score(label, cluster))
                found = {"acc": hungarian_accuracy(label, cluster), "nmi": nmi}
            row = {"set": name, "views": arguments.views, "use": use, **found}
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Two Markdown tables, in percent: ACC and NMI of every use, a set a line; and means of what tells doubt."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    scores = {(row["set"], row["use"]): (100 * row["acc"], 100 * row["nmi"]) for row in rows if "acc" in row}
    lines = [f"| set | {' | '.join(USES)} |", "|" + "---|" * (len(USES) + 1)]
    for name in names:
        cells = [f"{scores[name, use][0]:.1f}, {scores[name, use][1]:.1f}" for use in USES]
        lines.append(f"| {name.removeprefix('views/')} | {' | '.join(cells)} |")
    means = [np.mean([scores[name, use] for name in names], 0) for use in USES]
    lines.append(f"| **mean of {len(names)}** | {' | '.join(f'**{acc:.1f}, {nmi:.1f}**' for acc, nmi in means)} |")
    trust = [row for row in rows if row["use"] == "trust"]
    lines += ["", f"| mean of {len(trust)} sets | |", "|---|---|"]
    columns = [name for name in trust[0] if name.startswith(("ece", "acc", "auroc"))]
    lines += [f"| {name} | {100 * np.mean([row[name] for row in trust]):.1f} |" for name in columns]
    return "\n".join(lines)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--views", type=int, default=2)
    run_or_show(parser.parse_args(), measure, table)


if __name__ == "__main__":
    main()
