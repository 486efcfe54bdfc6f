"""New images through a trained run: cluster, confidence, and whether anything like them was trained on.

Embedding goes through the same `embed_rows` as stage one and results are written block by block, so one image and a
million take the same path and the same memory.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from jaxtyping import Float16, Int64

from temi.cache import EmbeddingCache
from temi.cache.bucket import bucket_url
from temi.cache.files import atomic_file, make_folder, os_errors
from temi.cache.fingerprint import IMPORTED, SPACES
from temi.cache.schema import MANIFEST
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbones import PLUGIN, Backbone, is_registered, load_backbone
from temi.pipeline.encode.forward import BATCH_SIZES, cut, embed_rows, stored
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.tables import check_same_backbone
from temi.pipeline.features.blocks import CachedRows, enumerate_blocks
from temi.pipeline.images import ImageSource, open_source
from temi.pipeline.images.left_out import found_beside
from temi.pipeline.network import ANOTHER
from temi.pipeline.progress import Progress
from temi.pipeline.results.corrections import route
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.checks import rows_since
from temi.pipeline.runs.novelty import NOVELTY, Novelty

BLOCK_ROWS = 4096  # rows assigned and written at once
LOCAL = "(local folder)"
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "cluster": pa.int32(),  # null where the image could not be read
        "name": pa.string(),
        "confidence": pa.float32(),
        "similarity": pa.float32(),  # cosine to the fifth nearest training image
        "typical": pa.float32(),  # p-value of similarity and doubt together (runs/novelty.py), near 0 for a stranger
        "novel": pa.bool_(),  # less typical than 95 % of the training images
        "error": pa.string(),  # why the image could not be read; else null
    }
)


@dataclass(frozen=True)
class Block:
    """Embeddings of consecutive images; those in `failures` (position -> reason) mean nothing."""

    keys: list[str]
    embedding: Float16[np.ndarray, "n D"]
    failures: dict[int, str]


@dataclass
class Counts:
    """What `predict` did."""

    images: int = 0
    novel: int = 0
    unreadable: int = 0


def predict(
    run: Path, images: str, out: Path | None, *, backbone: str | None = None, device: str = "auto", new: bool = False
) -> Counts:
    """Assign `images` to the clusters of `run` and write a row for each to `out`.

    Parameters
    ----------
    images
        An embedding cache, or any source of `temi embed`: an image file, a folder, a list, tar files, ...
    out
        ``.parquet`` or ``.csv``; None: CSV to the standard output.
    backbone
        Local folder of the weights, where the run was trained with a backbone from such a folder.
    new
        `images` is the cache that the run was trained on, grown since: only the rows that it had not then.

    Raises
    ------
    UserError
        The run is not finished, the images are missing, or the backbone is not the one the run was trained with.
    """
    finished = FinishedRun(run)
    novelty = Novelty.load(run / NOVELTY)
    blocks, total = _embedded(finished, images, backbone, device, new)
    counts = Counts()
    with _writer(out) as writer, Progress("predict", total, "img") as progress:
        for block in blocks:
            table = classify(finished, novelty, block)
            writer.write_table(table)
            counts.images += len(block.keys)
            counts.unreadable += len(block.failures)
            counts.novel += sum(1 for flag in table["novel"].to_pylist() if flag)
            progress.advance(len(block.keys))
    return counts


def classify(run: FinishedRun, novelty: Novelty, block: Block) -> pa.Table:
    """A row of SCHEMA per image of `block`."""
    embedding = torch.from_numpy(block.embedding)
    probability = run.model.predict_proba(embedding).cpu().numpy()
    confidence, scaled = probability.max(1), run.model.scaling(embedding).cpu().numpy()
    cluster = route(run.corrections, probability.argmax(1), scaled)
    near, similarity = novelty.look(scaled)
    typical = novelty.typical(similarity, near, probability)
    missing = np.zeros(len(block.keys), dtype=bool)
    missing[list(block.failures)] = True
    names = np.array(run.headings, dtype=object)[cluster]
    columns = {
        "key": block.keys,
        "cluster": pa.array(cluster.astype(np.int32), mask=missing),
        "name": pa.array(names, pa.string(), mask=missing),
        "confidence": pa.array(confidence, pa.float32(), mask=missing),
        "similarity": pa.array(similarity, pa.float32(), mask=missing),
        "typical": pa.array(typical.astype(np.float32), mask=missing),
        "novel": pa.array(novelty.is_novel(typical), mask=missing),
        "error": [block.failures.get(position) for position in range(len(block.keys))],
    }
    return pa.table(columns, schema=SCHEMA)


def _embedded(
    run: FinishedRun, images: str, backbone: str | None, device: str, new: bool
) -> tuple[Iterator[Block], int]:
    """Blocks of embeddings of `images`, and the number of images."""
    path = Path(images)
    with os_errors(path, "read"):
        is_cache = bool(bucket_url(images)) or (path / MANIFEST).is_file()
    if is_cache:
        cache = EmbeddingCache.open(path)
        check_same_backbone(run.model, cache)
        rows = _new_rows(run, cache) if new else np.arange(cache.rows)
        rows = rows[~np.isin(rows, list(cache.gone))]  # their images are not there any more, or have a later row
        return _cached(cache, rows), len(rows)
    if new:
        raise UserError(f"{images} is not a cache; --new takes the cache that {run.folder} was trained on, grown since")
    settings = recorded_settings(run, backbone, device)
    source = open_source(images, max_pixels=settings.max_pixels)
    for line in found_beside(source):
        print(line, file=sys.stderr)
    encoder = load_recorded(run, settings)
    return _computed(encoder, source), len(source.keys)


def recorded_settings(run: FinishedRun, backbone: str | None, device: str) -> EmbedConfig:
    """Settings of stage one that make embeddings like those the run was trained on."""
    made = run.model.made_from
    if SPACES in made.preprocessing:
        raise UserError(
            f"{run.folder} was trained on joined caches of {made.backbone}; embed the new images with each, "
            "`temi cache join` the caches and give the joined one"
        )
    if made.pooling == IMPORTED:
        raise UserError(
            f"{run.folder} was trained on imported embeddings, whose encoder is not known; make embeddings of the new "
            "images as those were made, `temi cache import` them and give `temi predict` that cache"
        )
    name = backbone or made.backbone
    if backbone is None and name.endswith(LOCAL):
        raise UserError(f"{run.folder} was trained with a backbone from a local folder; give it by --backbone FOLDER")
    revision, plugin, digest = made.revision.partition(PLUGIN)
    if plugin and backbone is None and not is_registered(name):
        raise UserError(
            f"{run.folder} was trained with the backbone {name} of a plugin (sha256 {digest[:12]}...); name it by "
            "--plugin FILE of `temi predict`"
        )
    from_hub = backbone is None and not made.revision.startswith("xxh3:")
    return EmbedConfig(
        backbone=name,
        revision=revision if from_hub else None,
        pooling=made.pooling,
        precision=made.precision.partition(",")[0],  # without "compiled": a few images are not worth it
        engine="auto" if "openvino" in made.precision else "torch",
        views=0,
        device=device,
    )


def load_recorded(run: FinishedRun, settings: EmbedConfig) -> Backbone:
    """The encoder of the run, at the image size of the run; UserError where the weights here are others, or none."""
    try:
        encoder = load_backbone(settings)
    except UserError as error:  # another encoder would not do
        own = f"give the folder of the weights that {run.folder} was trained with: --backbone FOLDER"
        raise UserError(str(error).replace(ANOTHER, own)) from None
    crop = run.model.made_from.preprocessing.get("crop")
    if crop and tuple(crop) != encoder.preprocessing.crop:
        encoder = load_backbone(settings.model_copy(update={"image_size": crop[0]}))
    check_backbone(run, encoder)
    return encoder


def check_backbone(run: FinishedRun, encoder: Backbone) -> None:
    """Refuse an encoder whose embeddings do not mean what the run was trained on."""
    made = run.model.made_from
    here = replace(
        made,
        backbone=encoder.name,
        revision=encoder.revision,
        preprocessing=encoder.preprocessing.describe(),
        pooling=encoder.pooling,
    )
    if differences := made.differences_in_meaning(here):
        raise UserError(
            f"{run.folder} was trained on other embeddings than this encoder makes ({'; '.join(differences)}); "
            "use the weights that the training images were embedded with"
        )


def _new_rows(run: FinishedRun, cache: EmbeddingCache) -> Int64[np.ndarray, " n"]:
    before = EmbeddingCache.open_as(cache.place, run.files.begun_with().cache.digest)
    if before is None:
        raise UserError(f"{run.folder} was not trained on {cache.folder}; leave out --new to assign all of its images")
    return rows_since(before, cache)


def _cached(cache: EmbeddingCache, wanted: Int64[np.ndarray, " n"]) -> Iterator[Block]:
    """Blocks of the rows `wanted`, which rise."""
    for first, block in enumerate_blocks(CachedRows(cache, wanted), BLOCK_ROWS):
        rows = wanted[first : first + len(block)].tolist()
        failures = {place: cache.unusable[row] for place, row in enumerate(rows) if row in cache.unusable}
        yield Block([cache.keys[row] for row in rows], block.numpy(), failures)


def _computed(encoder: Backbone, source: ImageSource) -> Iterator[Block]:
    size = BATCH_SIZES.get(encoder.device.type, 16)
    batches = cut(0, len(source.keys), size)
    stream = embed_rows(encoder, source, batches, workers="auto" if len(batches) > 1 else 0)
    for first in range(0, len(batches), per_block := max(1, BLOCK_ROWS // size)):
        parts = [next(stream) for _ in batches[first : first + per_block]]
        rows = range(parts[0].rows.start, parts[-1].rows.stop)
        failures = {row - rows.start: why for part in parts for row, why in part.failures.items()}
        keys, embedding = source.keys[rows.start : rows.stop], torch.cat([part.embedding for part in parts])
        yield Block(keys, stored(embedding, keys, rows.start, failures), failures)


class TableWriter(Protocol):
    """What the Parquet and CSV writers of pyarrow have in common."""

    def write_table(self, table: pa.Table) -> Any: ...


@contextmanager
def _writer(out: Path | None) -> Iterator[TableWriter]:
    """A writer of tables whose file appears under its name when it is complete."""
    if out is None:
        with pyarrow.csv.CSVWriter(sys.stdout.buffer, SCHEMA) as writer:
            yield writer
        return
    kinds = {".parquet": pyarrow.parquet.ParquetWriter, ".csv": pyarrow.csv.CSVWriter}
    if out.suffix.lower() not in kinds:
        raise UserError(f"--out {out} must end in .parquet or .csv")
    make_folder(out.parent)
    with atomic_file(out) as file, kinds[out.suffix.lower()](file, SCHEMA) as writer:
        yield writer
