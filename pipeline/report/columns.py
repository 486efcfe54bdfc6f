"""What a page knows of each image: columns as JSON, from which page/*.js draws everything."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from temi.pipeline.report.cards import along_centers, centers
from temi.pipeline.report.records import Images
from temi.pipeline.results.corrections import REMOVED
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.lists import Evidence, unusual_images

NEAR = 8  # similar images of each that a page without a server knows


def image_columns(
    run: FinishedRun,
    known: Evidence,
    position: Float32[np.ndarray, "shown 2"],
    shown: Int64[np.ndarray, " shown"],
) -> Images:
    """Columns of the images at `shown`, as trained: the page replays corrections itself.

    ``near`` are places in the page, -1 for images that are not in it; ``typical`` is left to who knows the clusters as
    corrected; ``group`` and ``exact`` number sets of duplicates.
    """
    table = run.trained
    cluster = table["cluster"].to_numpy("int64")
    label = run.cache.labels[table["row"].to_numpy()]
    place = np.full(len(table), -1, dtype=np.int64)
    place[shown] = np.arange(len(shown))
    strange = np.zeros(len(table), dtype=np.int64)
    strange[unusual_images(known.likeness)] = 1
    return Images(
        row=table["row"].to_numpy()[shown].tolist(),
        key=table["key"].iloc[shown].tolist(),
        cluster=cluster[shown].tolist(),
        confidence=rounded(table["confidence"].to_numpy()[shown], 3),
        second=known.second[shown].tolist(),
        runner=rounded(known.second_confidence[shown], 3),
        typical=[],
        likeness=rounded(known.likeness[shown], 3),
        strange=strange[shown].tolist(),
        group=known.group[shown].tolist(),
        exact=known.exact[shown].tolist(),
        x=rounded(position[:, 0], 4),
        y=rounded(position[:, 1], 4),
        label=label[shown].tolist() if (label >= 0).any() else [],
        near=place[known.neighbor[shown][:, :NEAR]].tolist(),
    )


def closeness(run: FinishedRun) -> Float32[np.ndarray, " n"]:
    """Cosine of each image to the center of its cluster, corrections applied; 0 where it is in none."""
    cluster = run.corrected.cluster
    center = centers(run.scaled, cluster, run.clusters)
    cosine = along_centers(run.scaled, cluster, center) / np.maximum(np.linalg.norm(run.scaled, axis=1), 1e-12)
    return np.where(cluster == REMOVED, 0, cosine).astype(np.float32)


def rounded(values: np.ndarray | Sequence[float], digits: int) -> list[float]:
    """Numbers as a page needs them: no more digits than can be seen."""
    found: list[float] = np.round(np.asarray(values, dtype=np.float64), digits).tolist()
    return found
