"""A finished run as a person uses it: its model, its assignments and the names of its clusters."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float16, Float32, Int32

from temi.cache import EmbeddingCache
from temi.cache.words import counted
from temi.pipeline.config import recorded_config
from temi.pipeline.errors import USER_ERRORS, UserError
from temi.pipeline.evaluate.tables import open_training_cache
from temi.pipeline.features.blocks import CachedRows, collect
from temi.pipeline.features.features import Features
from temi.pipeline.images import ImageSource
from temi.pipeline.images.recorded import open_images
from temi.pipeline.results.corrections import REMOVED, Corrected, Correction, replay, replay_clusters
from temi.pipeline.results.corrections_file import read_corrections
from temi.pipeline.results.fitting import check_written
from temi.pipeline.results.mosaic import mosaic
from temi.pipeline.results.names import display_name, first_names
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.run_folder import RunFolder
from temi.pipeline.runs.train import read_assignments, written_again
from temi.pipeline.runs.trials import choose_among, is_trials

COLUMNS = ["key", "row", "cluster", "confidence"]


class FinishedRun:
    """What `temi train-heads` left in `folder`; UserError where it is not finished or damaged.

    `cache` is where the training cache is now, if it moved.
    """

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.folder, self._cache = folder, cache
        self.files = RunFolder(folder)
        if is_trials(folder):
            raise UserError(f"{folder} holds {choose_among(folder)}")
        self.files.check_finished()

    @cached_property
    def shared(self) -> Path:
        """Where thumbnails and the map are kept: in the folder of the trials where the run is one of them."""
        parent = self.folder.resolve().parent
        return parent if is_trials(parent) else self.folder

    @cached_property
    def model(self) -> ClusterModel:
        return ClusterModel.load(self.files.model)

    @cached_property
    def corrections(self) -> list[Correction]:
        """What a person put right, in the order it was said; UserError where a line does not fit the run."""
        entries, clusters = read_corrections(self.folder), self.model.clusters
        check_written(self.folder, entries, clusters, first_names(self.folder, clusters))
        return entries

    def forget_corrections(self) -> None:
        """Read them again where they are needed next."""
        for name in ("corrections", "corrected", "outline", "assignments", "names", "headings"):
            self.__dict__.pop(name, None)

    @cached_property
    def corrected(self) -> Corrected:
        """Clusters as a person left them."""
        return self.replayed(self.corrections)

    def replayed(self, entries: Sequence[Correction]) -> Corrected:
        """Clusters as `entries`, those in the file first, make them of what was trained."""
        table = self.trained
        first = first_names(self.folder, self.model.clusters)
        check_written(self.folder, entries, self.model.clusters, first, self.place)
        cluster = table["cluster"].to_numpy("int64")
        return replay(table["key"].tolist(), cluster, self.model.clusters, entries, first, self.place)

    @cached_property
    def place(self) -> dict[str, int]:
        """Position of each image in the assignments, by key."""
        return {key: position for position, key in enumerate(self.trained["key"])}

    @cached_property
    def outline(self) -> Corrected:
        """Clusters as a person left them, without their images: known also where the assignments are gone."""
        first = first_names(self.folder, self.model.clusters)
        return replay_clusters(self.model.clusters, self.corrections, first)

    @property
    def clusters(self) -> int:
        """Numbers of clusters, those that a person made or merged away included."""
        return self.outline.clusters

    @property
    def gone(self) -> set[int]:
        """Numbers that are no cluster any more: merged into others, or given up and of no image."""
        idle = self.model.given_up
        return self.outline.merged | (idle - set(self.assignments["cluster"]) if idle else idle)

    @property
    def clusters_left(self) -> int:
        """How many clusters hold images, as a person left them."""
        cluster = self.assignments["cluster"]
        return int(cluster[cluster != REMOVED].nunique())

    @cached_property
    def names(self) -> list[str]:
        """Name of each cluster, "" where none was given."""
        return [self.outline.names.get(cluster, "") for cluster in range(self.clusters)]

    @cached_property
    def headings(self) -> list[str]:
        """What each cluster is called: its name, or "cluster 3"."""
        return [display_name(cluster, self.names) for cluster in range(self.clusters)]

    def __repr__(self) -> str:
        images = len(self.trained)
        return (
            f"FinishedRun({str(self.folder)!r}: {counted(images, 'image')} in {counted(self.clusters_left, 'cluster')})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: a mosaic of the clusters, without pictures where the images are not found."""
        try:
            images = self.images()
        except USER_ERRORS:
            images = None
        return mosaic(self.assignments, self.names, images)

    @property
    def embeddings(self) -> Float16[np.ndarray, "n D"]:
        """Cached embeddings of the images in the assignments, in their order; of large runs, see `rows`."""
        return collect(([block] for block in self.rows), [len(self.rows)])[0].numpy()

    @property
    def rows(self) -> CachedRows:
        """The same, read shard by shard."""
        return CachedRows(self.cache, self.trained["row"].to_numpy("int64"))

    @cached_property
    def probabilities(self) -> Float32[np.ndarray, "n C"]:
        """Probability of every trained cluster for each image in the assignments."""
        found: Float32[np.ndarray, "n C"] = self.model.predict_proba(self.rows).numpy(force=True)
        return found

    def neighbors(self, k: int = 15) -> tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"]]:
        """The k nearest images of each image in the assignments, as the run scales them, and their cosines."""
        settings = recorded_config(self.files.config).neighbors
        return Features.of_cache(self.cache, self.trained["row"].to_numpy()).neighbors(k, settings.scale)

    @cached_property
    def scaled(self) -> Float32[np.ndarray, "n D"]:
        """Embeddings of the images in the assignments, as the heads read them."""
        scaled: Float32[np.ndarray, "n D"] = self.model.scaling(self.rows).cpu().numpy()
        return scaled

    @cached_property
    def cache(self) -> EmbeddingCache:
        """The cache that the run was trained on; UserError or CacheError where it is gone or has changed."""
        return open_training_cache(self.files, EmbeddingCache.open(self._cache) if self._cache else None)

    def images(self, source: str | None = None) -> ImageSource:
        """The images that the cache was made from, at `source` or where they were; see `open_images`."""
        return open_images(self.cache, source, recorded_config(self.files.config).embed.max_pixels)

    def images_or_reason(self, source: str | None = None) -> tuple[ImageSource | None, str]:
        """The images, or why there are none; UserError where `source` was given and is wrong."""
        try:
            return self.images(source), ""
        except UserError as error:
            if source is not None:
                raise
            return None, str(error)

    @cached_property
    def assignments(self) -> pd.DataFrame:
        """key, row, cluster and confidence of every readable image of the training cache, corrections applied.

        The cluster of an image that a person removed is REMOVED. Where a person said where an image belongs, the
        confidence is 1.
        """
        if not self.corrections:
            return self.trained
        table, corrected = self.trained.copy(), self.corrected
        table["cluster"] = corrected.cluster.astype(table["cluster"].dtype)
        table.loc[corrected.by_hand, "confidence"] = 1.0
        return table

    @cached_property
    def trained(self) -> pd.DataFrame:
        """The assignments as the heads made them."""
        table = read_assignments(self.folder).to_pandas()
        if not set(COLUMNS) <= set(table.columns) or not table["cluster"].isin(range(self.model.clusters)).all():
            raise UserError(f"{self.folder}/assignments.parquet does not fit the run; {written_again(self.folder)}")
        return table[COLUMNS]
