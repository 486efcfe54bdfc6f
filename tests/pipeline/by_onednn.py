"""A process of its own for test_products.py: trains on an easy mixture, prints every row's cluster and the arithmetic.

python by_onednn.py FOLDER
"""

import json
import sys
from pathlib import Path

from mixtures import mixture, write_cache

import temi

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_cache(folder / "cache", mixture(rows=300, clusters=4, noise=0.3)[0])
    for kind in ("linear", "published"):
        short = ["heads.count=2", "neighbors.k=8", "train.epochs=0", "train.min_steps=30", "start.kind=random"]
        settings = [f"heads.kind={kind}", *short, "train.tensorboard=false"]
        run = temi.train_heads(folder / "cache", folder / kind, 4, settings)
        print(*run.trained["cluster"])
    print(json.loads((run.folder / "environment.json").read_text())["arithmetic"])
