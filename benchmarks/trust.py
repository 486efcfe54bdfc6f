"""What confidence and novelty are worth on many real sets: calibration, and images of classes that were left out.

    python benchmarks/trust.py --data FOLDER --results trust.jsonl [--sets a,b]
    python benchmarks/trust.py --results trust.jsonl --table

FOLDER is as in ``benchmarks/sets.py``. Calibration: the default is fitted to all rows; an image is right where its
cluster's class, by the Hungarian match, is its own. Novelty: a quarter of the classes is left out, and half of the
other rows is fitted; of the rest, the left-out classes are to be told from the others. Labels are read by the scoring
and by the choice of what is left out.
"""

import argparse
import json
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from sets import options, read_rows, read_sets, run_or_show
from sklearn.metrics import roc_auc_score

from temi.pipeline.config import load_config
from temi.pipeline.evaluate.metrics import confident_accuracy, matched_right
from temi.pipeline.features.features import Features
from temi.pipeline.progress import quiet
from temi.pipeline.runs.fit import fit_model
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.novelty import Novelty

BINS = 10
LEFT_OUT = 0.25  # of the classes
SHARES = ("50", "80", "90", "100")


def fit(embedding: np.ndarray, clusters: int) -> ClusterModel:
    """The default."""
    with quiet():
        return fit_model(Features.of_array(embedding), load_config(None, [f"heads.clusters={clusters}"]))


def expected_error(right: np.ndarray, confidence: np.ndarray) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015) over bins of equally many rows."""
    parts = np.array_split(np.argsort(confidence), BINS)
    return float(sum(len(part) * abs(right[part].mean() - confidence[part].mean()) for part in parts) / len(right))


def calibration(embedding: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """ECE, mean confidence, and ACC of the most confident."""
    cluster, confidence = (t.numpy() for t in fit(embedding, int(label.max()) + 1).assign(torch.from_numpy(embedding)))
    right = matched_right(label, cluster)
    shares = confident_accuracy(label, cluster, confidence)
    return {"ece": expected_error(right, confidence), "confidence": float(confidence.mean())} | shares


def novelty(embedding: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """AUROC of the distance to the fifth training row, of the confidence, and of the mean of their ranks."""
    random = np.random.default_rng(0)
    classes = int(label.max()) + 1
    strange = np.isin(label, random.choice(classes, max(1, round(LEFT_OUT * classes)), replace=False))
    trained = ~strange & (random.random(len(label)) < 0.5)
    model = fit(embedding[trained], len(np.unique(label[trained])))
    tested = torch.from_numpy(embedding[~trained])
    scaled = model.scaling(torch.from_numpy(embedding[trained]))
    near = Novelty.fit(scaled).similarity(model.scaling(tested).numpy())
    sure = model.assign(tested)[1].numpy()
    both = rankdata(near) + rankdata(sure)
    scores = {"distance": near, "doubt": sure, "both": both}
    return {f"auroc {name}": float(roc_auc_score(strange[~trained], -score)) for name, score in scores.items()}


def measure(arguments: argparse.Namespace) -> None:
    """Append a line for every set that the results do not hold yet."""
    done = {row["set"] for row in read_rows(arguments.results)}
    for name, embedding, views, label in read_sets(arguments.data, arguments.sets):
        if name in done or views is not None or label.max() < 2:  # two classes leave one, which no cut splits
            continue
        row = {"set": name, **calibration(embedding, label), **novelty(embedding, label)}
        with arguments.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, a set a line, in percent, and the means."""
    columns = ["ece", "confidence", *SHARES, "auroc distance", "auroc doubt", "auroc both"]
    titles = ["ECE", "mean confidence", *(f"ACC of {share} %" for share in SHARES), *columns[-3:]]
    lines = [f"| set | {' | '.join(titles)} |", "|" + "---|" * (len(columns) + 1)]
    lines += [f"| {row['set']} | {' | '.join(f'{100 * row[name]:.1f}' for name in columns)} |" for row in rows]
    means = [100 * np.mean([row[name] for row in rows]) for name in columns]
    return "\n".join([*lines, f"| **mean of {len(rows)}** | {' | '.join(f'**{mean:.1f}**' for mean in means)} |"])


def main() -> None:
    run_or_show(options(__doc__).parse_args(), measure, table)


if __name__ == "__main__":
    main()
