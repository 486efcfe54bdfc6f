"""Real sets made uneven: of the classes of a set, in random order, ever fewer images are kept, in geometric steps.

    python benchmarks/uneven.py --data FOLDER --out UNEVEN
    python benchmarks/sets.py --data UNEVEN --results uneven.jsonl

FOLDER is as in ``benchmarks/sets.py``. From the first class all images are kept, from the last 1 / RATIO as many and 8
at least. Labels are read by this choice and by the scoring.
"""

import argparse
from pathlib import Path

import numpy as np
from sets import read_sets

RATIO = 20
FEWEST = 8
NAMES = ["neu_steel", "dtd10", "trashnet", "flowers5", "clothing10", "seedlings", "monkeys10", "micrographs"]


def uneven(label: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Positions of the images that are kept, in order."""
    classes = random.permutation(int(label.max()) + 1)
    most = int((label == classes[0]).sum())
    wanted = np.geomspace(most, max(most / RATIO, FEWEST), len(classes)).astype(int)
    members = [np.flatnonzero(label == one) for one in classes]
    kept = [random.choice(own, min(size, len(own)), False) for own, size in zip(members, wanted, strict=True)]
    return np.sort(np.concatenate(kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    (arguments.out / "sets").mkdir(parents=True, exist_ok=True)
    for name, embedding, _, label in read_sets(arguments.data, NAMES):
        for seed in range(2):
            kept = uneven(label, np.random.default_rng(seed))
            np.savez(arguments.out / f"sets/{name}-{seed}.npz", embedding=embedding[kept], label=label[kept])
            print(f"{name}-{seed}: {len(kept)} images, classes of {np.bincount(label[kept]).tolist()}")


if __name__ == "__main__":
    main()
