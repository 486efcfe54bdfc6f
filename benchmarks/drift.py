"""What `train-heads --from` says of images that came later: new classes, or more of the classes that were there.

Of every set one half is trained on, and a second run goes on with all images. The first half is either half of the
classes (drift) or half of the images of each class (none). Labels choose the halves and score; training sees none.

    python benchmarks/drift.py --data FOLDER [--sets a,b] [--seeds 0,1]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sets import read_sets

from temi.cache import EmbeddingCache
from temi.cache.convert.importing import import_embeddings
from temi.pipeline.config import Config, load_config
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.progress import quiet
from temi.pipeline.results.continuing import open_before
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.continued import CONTINUED, Continued
from temi.pipeline.runs.records import read_record
from temi.pipeline.runs.train import train_heads


def halves(label: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Positions of the first half, for each way of halving."""
    random = np.random.default_rng(seed)
    classes = random.permutation(int(label.max()) + 1)[: (int(label.max()) + 1) // 2]
    every = [random.permutation(np.flatnonzero(label == own)) for own in range(int(label.max()) + 1)]
    return {
        "half of the classes": np.flatnonzero(np.isin(label, classes)),
        "half of each class": np.sort(np.concatenate([rows[: len(rows) // 2] for rows in every])),
    }


def cache_of(folder: Path, embedding: np.ndarray, rows: np.ndarray) -> EmbeddingCache:
    """A cache of some rows, named by their positions."""
    folder.mkdir()
    np.save(folder / "rows.npy", embedding[rows])
    (folder / "keys.txt").write_text("".join(f"{row}\n" for row in rows))
    return import_embeddings(folder / "rows.npy", folder / "cache", keys=folder / "keys.txt")


def settings(clusters: int, seed: int) -> Config:
    seeds = [f"{section}.seed={seed}" for section in ("start", "train", "pairs")]
    return load_config(None, [f"heads.clusters={clusters}", *seeds, "train.tensorboard=false"])


def continued(
    work: Path, embedding: np.ndarray, label: np.ndarray, first: np.ndarray, seed: int
) -> tuple[Continued, float]:
    """The first half, then all: how the second run differs, and its accuracy."""
    every = np.concatenate([first, np.setdiff1d(np.arange(len(label)), first)])
    train_heads(cache_of(work / "one", embedding, first), settings(len(np.unique(label[first])), seed), work / "run")
    cache = cache_of(work / "all", embedding, every)
    train_heads(cache, settings(int(label.max()) + 1, seed), work / "next", before=open_before(work / "run"))
    table = FinishedRun(work / "next").trained
    accuracy = hungarian_accuracy(label[table["key"].astype(int)], table["cluster"].to_numpy("int64"))
    return read_record(Continued, work / "next" / CONTINUED), accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", type=lambda text: text.split(","), default=[])
    parser.add_argument("--seeds", type=lambda text: list(map(int, text.split(","))), default=[0])
    arguments = parser.parse_args()
    print("| set | first | before, new | drift | unlike those before | moved | numbers kept, new | ACC of all |")
    print("|---|---|---|---:|---:|---:|---|---:|")
    for name, embedding, _, label in read_sets(arguments.data, arguments.sets):
        for seed in arguments.seeds:
            for how, first in halves(label, seed).items():
                with tempfile.TemporaryDirectory() as work, quiet():
                    found, accuracy = continued(Path(work), embedding, label, first, seed)
                print(
                    f"| {name} | {how} | {found.known:,}, {found.new:,} "
                    f"| {found.drift:.2f} | {found.unlike / found.new:.1%} "
                    f"| {found.moved / found.known:.1%} | {len(found.kept)}, {len(found.begun)} | {accuracy:.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
