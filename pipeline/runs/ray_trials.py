"""Stage two on the nodes of a Ray cluster: packs of trials that train in one stack each, and processes of a search.

A trial equals itself alone (pipeline/heads/stack.py; to the bit, or to rounding beside trials of more clusters), so it
does not matter which others it trains beside.
Workers write run folders and studies themselves, where all nodes see them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from temi.cache import EmbeddingCache
from temi.cache.bucket import bucket_url
from temi.cache.files import make_folder
from temi.cache.schema import NEIGHBOR_FOLDER
from temi.pipeline.config import Config
from temi.pipeline.features.constraints import Constraints
from temi.pipeline.plugins import Plugin, load_text
from temi.pipeline.progress import Progress, quiet
from temi.pipeline.ray_cluster import node, not_seen, use_own_cores, workers_on
from temi.pipeline.runs.mirror import Mirror, shown
from temi.pipeline.runs.run_folder import RunFolder
from temi.pipeline.runs.search import Search, search
from temi.pipeline.runs.train import train_pass


@dataclass(frozen=True)
class Job:
    """What every worker needs.

    Attributes
    ----------
    cache, digest : whole path or URL of the cache, and the digest of its embeddings
    out : whole path of the folder that is written to, or the URL of a place in a bucket
    plugins : name and text of each file of the user's own
    """

    cache: str
    digest: str
    out: str
    plugins: Sequence[tuple[str, bytes]]

    @classmethod
    def of(cls, cache: EmbeddingCache, out: Path, plugins: Sequence[Plugin]) -> "Job":
        """The job of this process, whose folder `out` is made."""
        make_folder(out)
        files = [(plugin.path.name, plugin.code) for plugin in plugins]
        return cls(cache.place, cache.digest, shown(out.resolve()), files)

    @contextmanager
    def taken_up(self) -> Iterator[tuple[EmbeddingCache, list[Plugin]]]:
        """On a worker: the cache and the plugins, and nothing printed meanwhile."""
        use_own_cores()
        plugins = [load_text(name, text) for name, text in self.plugins]
        cache = EmbeddingCache.open(self.cache)
        if not (bucket_url(self.out) or Path(self.out).is_dir()) or cache.digest != self.digest:
            raise not_seen(f"the same {self.out if cache.digest == self.digest else self.cache}")
        with quiet():
            yield cache, plugins


@dataclass(frozen=True)
class Pack:
    """Trials that share a pass, and the names of their folders."""

    configs: Sequence[Config]
    folders: Sequence[str]


class Trainer:
    """A worker that trains packs, with what a person `told` of images."""

    def __init__(self, job: Job, told: Constraints | None) -> None:
        self._job, self._told = job, told

    def train(self, pack: Pack) -> Iterator[tuple[int, str]]:
        """Train each trial of `pack` into its folder; how many, and on which node."""
        with self._job.taken_up() as (cache, plugins):
            url = bucket_url(self._job.out)
            mirrors = [Mirror.open(f"{url}/{name}") for name in pack.folders] if url else []
            folders = [mirror.folder for mirror in mirrors] or [Path(self._job.out, name) for name in pack.folders]
            runs, kept = [RunFolder(folder) for folder in folders], folders[0].parent / NEIGHBOR_FOLDER
            train_pass(cache, pack.configs, runs, kept, overwrite=False, plugins=plugins, told=self._told)
            for mirror in mirrors:
                mirror.push()
        yield len(runs), node()


def train_groups(
    on: str,
    job: Job,
    configs: Sequence[Config],
    folders: Sequence[str],
    groups: Sequence[Sequence[int]],
    told: Constraints | None,
) -> None:
    """Train trials on the cluster that `on` names; those of one of the `groups` may share a pass."""
    with (
        workers_on(on, Trainer, job, told, gpus=configs[0].train.device != "cpu") as workers,
        Progress("train", len(configs), "trial") as progress,
    ):
        packs = [Pack([configs[i] for i in part], [folders[i] for i in part]) for part in parts(groups, workers.count)]
        named = {f"the pack of {pack.folders[0]}": pack for pack in packs}
        for _, (trained, where) in workers.deal("train", named):
            progress.advance(trained, f"on {where}")


class Searcher:
    """A worker that trains trials of a study."""

    def __init__(self, job: Job, wanted: Search) -> None:
        self._job, self._wanted = job, wanted

    def search(self, draws: int) -> Iterator[str]:
        """Train until the study has all its trials; on which node."""
        with self._job.taken_up() as (cache, plugins):
            search(cache, self._wanted, Path(self._job.out), plugins=plugins, draws=draws)
        yield node()


def search_on_nodes(on: str, job: Job, wanted: Search, finished: Callable[[], int]) -> None:
    """Have every worker of the cluster that `on` names search; `finished` counts the trials of the study that are."""
    gpus = wanted.config({}).train.device != "cpu"
    before = finished()
    with (
        workers_on(on, Searcher, job, wanted.on_another_machine(), gpus=gpus) as workers,
        Progress("search", max(0, wanted.trials - before), "trial") as progress,
    ):

        def count() -> None:
            progress.advance(finished() - before - progress.done, f"{workers.count} workers")

        searchers = {f"searcher {number}": number for number in range(workers.count)}
        for _ in workers.deal("search", searchers, watch=count):
            count()


def parts(groups: Sequence[Sequence[int]], places: int) -> list[Sequence[int]]:
    """`groups`, cut into about one part for each place: in a stack, many trials take little longer than one."""
    size = ceil(sum(map(len, groups)) / places)
    return [group[first : first + size] for group in groups for first in range(0, len(group), size)]
