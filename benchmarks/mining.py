"""Neighbor mining against scikit-learn's brute force and a dense top-k in torch; exact against approximate.

Every contender runs in a process of its own, one after the other in every round, so peak memory is its own too.

    python benchmarks/mining.py [--rows 50000] [--dim 768] [--k 50] [--rounds 3] [--embeddings isotropic]
    python benchmarks/mining.py --contenders exact approximate --rows 200000 --dim 128
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

CLUSTERS = 100


def decaying(rows: int, dim: int) -> np.ndarray:
    """Like features of a network: 100 classes of unequal size, a common mean, and variance that falls with the axis.

    The i-th principal variance falls as 1 / (i + 4), half of it between classes, and the mean is as large as the rest:
    what EfficientNet-Lite0 has on CIFAR-10 (mean 47 % of the norm, 128 components with 71 % of the variance).
    """
    rng = np.random.default_rng(0)
    scale = (1 / np.sqrt(4 + np.arange(1, dim + 1))).astype(np.float32)
    scale /= np.sqrt((scale**2).sum())
    centers, label = rng.standard_normal((CLUSTERS, dim), dtype=np.float32), _classes(rows, rng)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    mean = (np.linalg.qr(rng.standard_normal((dim, 1)))[0].T).astype(np.float32)
    return (centers[label] + rng.standard_normal((rows, dim), dtype=np.float32)) * scale / np.sqrt(2) @ turn + mean


def isotropic(rows: int, dim: int) -> np.ndarray:
    """Standard normal rows around 100 standard normal centers: every axis is as noisy as the others."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((CLUSTERS, dim), dtype=np.float32)
    return centers[_classes(rows, rng)] + rng.standard_normal((rows, dim), dtype=np.float32)


def _classes(rows: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(CLUSTERS, rows, p=rng.dirichlet(np.full(CLUSTERS, 2.0)))


def exact(x: np.ndarray, k: int) -> np.ndarray:
    from temi.pipeline.features.neighbors import exact_neighbors

    return exact_neighbors(x, k)[0]


def approximate(x: np.ndarray, k: int) -> np.ndarray:
    from temi.pipeline.features.neighbors import approximate_neighbors
    from temi.pipeline.features.unit_rows import UnitRows

    index, _, probing = approximate_neighbors(UnitRows(torch.from_numpy(x)), k)
    print(probing, file=sys.stderr)
    return index


def scikit_learn(x: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(unit).kneighbors(return_distance=False)


def dense_torch(x: np.ndarray, k: int) -> np.ndarray:
    unit = torch.nn.functional.normalize(torch.from_numpy(x), dim=1)
    return torch.cat([(block @ unit.T).topk(k + 1).indices for block in unit.split(1024)]).numpy()


EMBEDDINGS = {"decaying": decaying, "isotropic": isotropic}
CONTENDERS = {"exact": exact, "approximate": approximate, "scikit-learn": scikit_learn, "torch": dense_torch}


def worker(name: str, kind: str, rows: int, dim: int, k: int) -> None:
    x = EMBEDDINGS[kind](rows, dim)
    CONTENDERS[name](x[:2000], min(k, 1000))  # imports and threads
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    CONTENDERS[name](x, k)
    seconds = time.perf_counter() - began
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["exact", "scikit-learn", "torch"])
    parser.add_argument("--embeddings", choices=EMBEDDINGS, default="decaying")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.embeddings, args.rows, args.dim, args.k)
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in args.contenders}
    shape = ["--embeddings", args.embeddings, "--rows", str(args.rows), "--dim", str(args.dim), "--k", str(args.k)]
    for _ in range(args.rounds):
        for name in args.contenders:
            command = [sys.executable, __file__, "--worker", name, *shape]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds, megabytes = map(float, output.split())
            found[name].append((seconds, megabytes))
            print(f"{name:13} {seconds:8.2f} s  {megabytes:8.0f} MB more memory", flush=True)
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{platform.processor() or platform.machine()}, {threads}")
    print(f"{args.rows:,} x {args.dim}, {args.embeddings}, K = {args.k}, medians of {args.rounds} interleaved rounds")
    first = found[args.contenders[0]]
    for name, measured in found.items():
        ratio = statistics.median(own[0] / base[0] for own, base in zip(measured, first, strict=True))
        seconds, megabytes = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name:13} {seconds:8.2f} s  {ratio:6.2f}x {args.contenders[0]}  {megabytes:8.0f} MB more memory")


if __name__ == "__main__":
    main()
