"""What `import temi` offers: the two stages and their results as functions, beside the scikit-learn estimator."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from temi.cache import EmbeddingCache
from temi.pipeline.config import load_config, texts_of
from temi.pipeline.encode.embed import embed as embed_images
from temi.pipeline.errors import UserError
from temi.pipeline.plugins import load_plugins
from temi.pipeline.results.carry import carry_over
from temi.pipeline.results.constraints import clusters_left, read_constraints
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.train import train_heads as train

Place = str | Path


def embed(
    source: Place,
    out: Place,
    settings: Sequence[str] = (),
    *,
    config: Place | None = None,
    root: Place | None = None,
    plugins: Sequence[Place] = (),
    overwrite: bool = False,
) -> EmbeddingCache:
    """Stage one: `source`, images of any kind that `temi embed` reads, into the cache `out`; resumed if it is there.

    Parameters
    ----------
    settings : as ``--set`` takes them, e.g. ``["embed.backbone=efficientnet-lite0", "embed.pooling=mean"]``
    config : TOML file of settings
    root : where torchvision data sets are, or are downloaded to
    plugins : files of your own that register what the settings or `source` name; they are code and are run
    """
    place = Path(root) if root else None
    with _as_in_python():
        loaded = load_plugins(plugins)
        chosen = load_config(Path(config) if config else None, texts_of(settings)).embed
        made = embed_images(str(source), Path(out), chosen, root=place, overwrite=overwrite, plugins=loaded)
    if made is None:
        raise UserError(f"{out} is being filled by several processes; open it with temi.open_cache when all are done")
    return made


def train_heads(
    cache: EmbeddingCache | Place,
    out: Place,
    clusters: int | None = None,
    settings: Sequence[str] = (),
    *,
    config: Place | None = None,
    plugins: Sequence[Place] = (),
    corrections: Place | None = None,
    overwrite: bool = False,
) -> FinishedRun:
    """Stage two: clustering heads on a cache, into the run folder `out`; an interrupted run is resumed.

    Parameters
    ----------
    clusters : number of clusters, C; None: that of the settings
    settings, config : as for `embed`
    plugins : files of your own that register what the settings name; they are code and are run
    corrections : an earlier run (or the corrections.jsonl in it): what a person said of it is kept
    """
    if not isinstance(cache, EmbeddingCache | str | Path):
        raise UserError(
            f"train_heads takes a cache or its folder, not {type(cache).__name__}; cluster an array by "
            "temi.TemiClusterer(n_clusters=10).fit_predict(array)"
        )
    with _as_in_python():
        earlier, told = read_constraints(Path(corrections)) if corrections else (None, None)
        loaded = load_plugins(plugins)
        base = Path(config) if config else None
        overrides = [*texts_of(settings), *([] if clusters is None else [f"heads.clusters={clusters}"])]
        chosen = load_config(base, overrides if told is None else clusters_left(told, base, overrides))
        opened = cache if isinstance(cache, EmbeddingCache) else open_cache(cache)
        train(opened, chosen, Path(out), overwrite=overwrite, plugins=loaded, told=told)
    run = FinishedRun(Path(out))
    if earlier is not None:
        carry_over(earlier, run)
    return run


@contextmanager
def _as_in_python() -> Iterator[None]:
    """Inside, a mistake is told in the words of a call: ``settings=["section.key=value"]`` for ``--set``."""
    try:
        yield
    except UserError as error:
        told = re.sub(r"--set (\w+\.\w+=[\w.-]*[\w-])", r'settings=["\1"]', str(error))
        if told == str(error):
            raise  # with what caused it, such as an error in a plugin
        raise UserError(told) from None


def open_cache(folder: Place) -> EmbeddingCache:
    """A finished cache: `embedding()`, `view_embedding()`, `keys`, `labels`, `splits`."""
    return EmbeddingCache.open(Path(folder))


def open_run(folder: Place, cache: Place | None = None) -> FinishedRun:
    """A finished run: `assignments`, `probabilities`, `embeddings`, `neighbors`, `clusters`, `names`.

    `cache` is where the training cache is now, if it moved.
    """
    return FinishedRun(Path(folder), Path(cache) if cache else None)
