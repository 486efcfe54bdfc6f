"""Stage two as a scikit-learn estimator on embeddings: the functions behind the command line, and no others."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float32, Int32
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from temi.cache import EmbeddingCache
from temi.cache.convert.importing import import_embeddings
from temi.cache.files import make_folder
from temi.cache.halves import to_halves
from temi.pipeline.config import SEEDS, Config, asked, load_config, texts_of
from temi.pipeline.errors import UserError
from temi.pipeline.features.copies import exact_copies
from temi.pipeline.features.features import Features
from temi.pipeline.progress import quiet
from temi.pipeline.results.constraints import read_constraints
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.fit import fit_model
from temi.pipeline.runs.run_folder import RunFolder
from temi.pipeline.runs.train import assign, train_heads

MAX_SEED = 2**31 - 1
ROW = "row {} of X".format  # in a refusal
PARAMETERS = {"heads.clusters": "n_clusters", **dict.fromkeys(SEEDS, "random_state")}  # which stand for settings


class TemiClusterer(ClusterMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Cluster embeddings with heads trained by TEMI.

    Parameters
    ----------
    n_clusters : int, default 10
        Number of clusters, C; some may stay empty.
    settings : sequence of str or None, default ()
        Settings of the pipeline as ``--set`` takes them, e.g. ``("train.min_steps=500", "objective.beta=0.6")``.
        Those that `n_clusters` and `random_state` stand for are refused.
    random_state : int, RandomState or None, default 0
        Seed of cuts, heads and batches; an int gives the run that the command line gives with these seeds.
    run : path or None, default None
        Folder to keep a cache (``cache``) and the run (``run``) in, e.g. for `temi report`; None: nothing is written.
    corrections : path or None, default None
        An earlier run (or the corrections.jsonl in it) of rows named "0", "1", ... as `run` keeps it: what a person
        said of it is kept, also where rows were added behind them.
    verbose : bool, default False
        Show progress.

    Attributes
    ----------
    labels_ : (n_samples,) int32
        Cluster of each training row; clusters are numbered by falling size. With `corrections`, rows are where a
        person put them, also where training did not learn it; -1 where a person took a row out of all clusters.
    confidence_ : (n_samples,) float32
        Probability of that cluster; 1 for every row that a person placed or took out, also where training agrees.
    model_ : temi.pipeline.runs.model.ClusterModel
        The trained heads.
    n_features_in_ : int
        Width of the embeddings.

    Notes
    -----
    What a cache would refuse is refused here, too: float16 must hold the embeddings (`temi.cache.halves`).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from temi import TemiClusterer
    >>> labels = TemiClusterer(n_clusters=10).fit_predict(load_digits().data)
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        settings: Sequence[str] | None = (),
        random_state: int | np.random.RandomState | None = 0,
        run: str | Path | None = None,
        corrections: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.settings = settings
        self.random_state = random_state
        self.run = run
        self.corrections = corrections
        self.verbose = verbose

    def fit(self, X: Any, y: object = None) -> Self:
        """Train on embeddings (n_samples, n_features); `y` is ignored.

        Raises
        ------
        ValueError
            Not two or more rows of finite numbers, more clusters than different rows, a setting that does not exist or
            that a parameter or an array rules out, or a `run` that is no folder.
        """
        embedding = self._embedding(X, ensure_min_samples=2)
        for name in ("run", "corrections"):
            _check_path(name, getattr(self, name))
        distinct = exact_copies(torch.from_numpy(to_halves(embedding, ROW)))[0]
        config = self._config(len(distinct))
        earlier, told = read_constraints(Path(self.corrections)) if self.corrections else (None, None)
        with nullcontext() if self.verbose else quiet():
            if self.run is None:
                known = told and told.on([str(row) for row in range(len(embedding))])
                self.model_ = fit_model(Features.of_array(embedding), config, known)
            else:
                cache = write_cache(embedding, Path(self.run))
                self.model_ = train_heads(cache, config, Path(self.run) / "run", told=told)
                embedding = cache.embedding()
            self.labels_, self.confidence_ = assign(self.model_, embedding)
        if earlier is not None:
            self._keep_said(earlier)
        return self

    def predict_proba(self, X: Any) -> Float32[np.ndarray, "n C"]:
        """Probability of every cluster for each row of `X`."""
        check_is_fitted(self)
        embedding = self._embedding(X, reset=False)
        to_halves(embedding, ROW)
        probability: Float32[np.ndarray, "n C"] = self.model_.predict_proba(torch.from_numpy(embedding)).numpy(
            force=True
        )
        return probability

    def predict(self, X: Any) -> Int32[np.ndarray, " n"]:
        """Cluster of each row of `X`."""
        cluster: Int32[np.ndarray, " n"] = self.predict_proba(X).argmax(1).astype(np.int32)
        return cluster

    def _embedding(self, X: Any, **how: Any) -> Float32[np.ndarray, "n D"]:
        """`X` as torch takes it: finite, row after row, and without a lock."""
        return _without_lock(validate_data(self, X, dtype=np.float32, order="C", **how))

    def _keep_said(self, earlier: FinishedRun) -> None:
        """Put rows where a person put them; the same in the run that is kept."""
        from temi.pipeline.results.carry import Kept, carry_over

        rows = {str(row): row for row in range(len(self.labels_))}
        kept = Kept.of(earlier, rows, self.labels_.astype(np.int64), self.model_.clusters)
        self.labels_[kept.place] = kept.left
        self.confidence_[kept.place[kept.by_hand]] = 1.0
        if self.run is not None:
            carry_over(earlier, FinishedRun(Path(self.run) / "run"))

    def _config(self, rows: int) -> Config:
        """The settings for so many different rows; where they are few, each has all others for neighbors."""
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(MAX_SEED)
        settings = texts_of(() if self.settings is None else self.settings)
        for name in asked(settings):
            if name in PARAMETERS:
                raise UserError(f"settings has {name}; give {PARAMETERS[name]} instead, which sets it")
        given = load_config(None, settings)
        if given.train.split:
            raise UserError(
                f"settings has train.split={given.train.split}, but an array has no splits; fit the rows to train on"
            )
        own = [f"heads.clusters={self.n_clusters}", *(f"{name}={seed}" for name in SEEDS)]
        if "k" not in given.neighbors.model_fields_set and given.neighbors.k >= rows:
            own.append(f"neighbors.k={max(1, rows - 1)}")
        return load_config(None, [*settings, *own])


class _Memory:
    """The memory of an array, as NumPy takes it from another library."""

    def __init__(self, array: Float32[np.ndarray, "n D"]) -> None:
        self.array, self.__array_interface__ = array, {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _without_lock(array: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
    """The same memory as an array that may be written to, else torch warns the user; nothing here writes to it."""
    return array if array.flags.writeable else np.asarray(_Memory(array))


def _check_path(name: str, given: object) -> None:
    """Raise a UserError, with the parameter's name, where a path is none."""
    if given is not None and not isinstance(given, str | os.PathLike):
        raise UserError(f"{name} is a path, got {given!r}")


def write_cache(embedding: Float32[np.ndarray, "n D"], folder: Path) -> EmbeddingCache:
    """``folder/cache`` with these rows, as `temi cache import` makes it; the one there if it holds the same."""
    if RunFolder(folder).config.exists():
        raise UserError(f"run={folder} is the folder of a finished run; give the run of an array a folder of its own")
    make_folder(folder)
    with tempfile.TemporaryDirectory(prefix=".temi-", dir=folder) as name:
        array, keys = Path(name) / "embedding.npy", Path(name) / "keys.txt"
        np.save(array, embedding)
        keys.write_text("".join(f"{row}\n" for row in range(len(embedding))))
        return import_embeddings(array, folder / "cache", keys=keys)
