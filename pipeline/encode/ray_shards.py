"""Shards made on the nodes of a Ray cluster: a piece of work is a shard, a worker keeps the encoder loaded.

Images are listed once, by the process that began, and every worker is handed the list. Workers write to the cache
themselves; what they yield is what a person is shown.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from temi.cache import EmbeddingCache, Manifest, Shard, ShardWriter
from temi.cache.bucket import Bucket, bucket_url
from temi.cache.more_views import ViewsWriter
from temi.cache.remote import RemoteWriter
from temi.cache.shard import Sidecar
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import Encoding, ThisProcess
from temi.pipeline.encode.shards import Step, Steps
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageSource, UnreadableImage
from temi.pipeline.network import check_backbone_is_here
from temi.pipeline.plugins import Plugin, load_text
from temi.pipeline.ray_cluster import Handle, Workers, fetch, hand_out, node, not_seen, use_own_cores, workers_on

WITNESSES = 100  # images of which the first that can be read here must be readable on every node


@dataclass(frozen=True)
class Plan:
    """What shards are made of, and where they go.

    Attributes
    ----------
    place : whole path of the folder that they are written to, or the URL of their cache
    before : whole path of the cache that has all but the new views, where views are added
    witness : an image that can be read where the images were listed
    """

    images: ImageSource
    manifest: Manifest
    place: str
    before: str | None
    witness: int | None

    @classmethod
    def of(cls, images: ImageSource, writer: ShardWriter) -> "Plan":
        """What `writer` would make of `images`."""
        place = writer.bucket.url if isinstance(writer, RemoteWriter) else str(writer.folder.resolve())
        before = writer.before.place if isinstance(writer, ViewsWriter) else None
        return cls(images, writer.manifest, place, before, _witness(images))

    @contextmanager
    def writer(self) -> Iterator[ShardWriter]:
        """On a worker: what writes shards to the cache, which another process has begun."""
        if (url := bucket_url(self.place)) is not None:
            with tempfile.TemporaryDirectory(prefix="temi-") as folder:
                yield RemoteWriter.beside(Bucket(url), Path(folder), self.manifest)
            return
        if not Path(self.place, self.manifest.file_name).exists():
            raise not_seen(self.place)
        with (ViewsWriter if self.before else ShardWriter)(Path(self.place), self.manifest) as writer:
            if isinstance(writer, ViewsWriter) and self.before:
                writer.before = EmbeddingCache.open(self.before)
            yield writer


@contextmanager
def ray_workers(on: str, config: EmbedConfig, plugins: Sequence[Plugin]) -> Iterator["OnRay"]:
    """Workers on the cluster that `on` names."""
    files = [(plugin.path.name, plugin.code) for plugin in plugins]
    with workers_on(on, Embedder, config, files, gpus=config.device != "cpu") as workers:
        yield OnRay(workers)


class OnRay:
    """Has shards made by `workers`."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.encoding: Encoding = workers.first("encoding")

    def make(self, writer: ShardWriter, pending: Sequence[Shard], images: ImageSource) -> Steps:
        writer.close()  # workers claim the shards that they make
        plan = hand_out(Plan.of(images, writer))
        for _, step in self._workers.deal("make", {shard.name: shard for shard in pending}, plan):
            yield step


class Embedder:
    """A worker.

    Parameters
    ----------
    plugins : name and text of each file of the user's own
    """

    def __init__(self, config: EmbedConfig, plugins: Sequence[tuple[str, bytes]]) -> None:
        self._config, self._plugins = config, plugins
        self._maker: ThisProcess | None = None
        self._plan: Plan | None = None

    def encoding(self) -> Encoding:
        """What is made of an image here."""
        return self._loaded().encoding

    def make(self, shard: Shard, handle: Handle) -> Steps:
        """Make `shard`, or tell of it as if, where a worker that was lost had made it to the end."""
        maker, plan = self._loaded(), self._taken(handle)
        with plan.writer() as writer:
            owed = writer.pending(shard.index, len(plan.manifest.shards))
            steps = maker.make(writer, owed, plan.images) if owed else _remembered(shard, plan, maker)
            for step in steps:
                yield replace(step, note=f"{step.note} on {node()}") if step.note else step

    def _loaded(self) -> ThisProcess:
        if self._maker is None:
            use_own_cores()
            for name, text in self._plugins:
                load_text(name, text)
            if not self._plugins:  # one may register any name
                check_backbone_is_here(self._config.backbone)
            self._maker = ThisProcess(self._config)
        return self._maker

    def _taken(self, handle: Handle) -> Plan:
        """The plan, fetched once, and compared with what this node sees and makes."""
        if self._plan is None:
            plan: Plan = fetch(handle)
            made = plan.manifest.fingerprint
            here = replace(self._loaded().encoding.fingerprint, images=made.images)
            if found := made.differences(here):
                raise UserError(
                    f"node {node()} embeds in another way than the node that answered first ({'; '.join(found)}); "
                    "use nodes of one kind with the same packages, or --set embed.device=cpu"
                )
            if plan.witness is not None:
                _check_images(plan.images, plan.witness)
            self._plan = plan
        return self._plan


def _remembered(shard: Shard, plan: Plan, maker: ThisProcess) -> Steps:
    """As many steps as making `shard` has: Ray counts them to know which were told before a worker was lost."""
    sidecar = Sidecar.read(Path(plan.place, f"{shard.name}.json"), plan.manifest, shard)
    unread = {failure.row for failure in sidecar.failures}
    for batch in maker.batches(shard):
        yield Step(len(batch), len(unread.intersection(batch)), f"shard {shard.index + 1}/{len(plan.manifest.shards)}")
    yield Step()


def _witness(images: ImageSource) -> int | None:
    """The first of the first WITNESSES images that can be read."""
    return next((row for row in range(min(len(images.keys), WITNESSES)) if _reason(images, row) is None), None)


def _check_images(images: ImageSource, witness: int) -> None:
    if reason := _reason(images, witness):
        raise UserError(
            f"node {node()} cannot read {images.keys[witness]} ({reason}); "
            "keep the images where every node finds them by the same path, or in a bucket"
        )


def _reason(images: ImageSource, row: int) -> str | None:
    """Why an image cannot be read; None where it can."""
    try:
        images.read(row)
    except UnreadableImage as error:
        return str(error)
    return None
