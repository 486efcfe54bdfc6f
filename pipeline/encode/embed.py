"""Stage one: every image once through a frozen backbone, into a cache.

This file plans a cache and has its shards made: by this process (pipeline/encode/shards.py), or by the workers of a Ray
cluster (pipeline/encode/ray_shards.py).
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from temi.cache import EmbeddingCache, Fingerprint, Manifest, Shard, ShardWriter, plan_shards
from temi.cache.bucket import Bucket, bucket_url
from temi.cache.more_views import ViewsWriter, forget_views, lacks_views, take_in_views
from temi.cache.remote import RemoteWriter, pull_index
from temi.cache.schema import MANIFEST, ORIGIN, SKIPPED
from temi.cache.words import counted
from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.backbones import Backbone, load_backbone
from temi.pipeline.encode.forward import batch_size, cut
from temi.pipeline.encode.shards import Steps, make_shards, show
from temi.pipeline.encode.views import ViewPolicy
from temi.pipeline.errors import USER_ERRORS, UserError
from temi.pipeline.images import ImageSource, open_source
from temi.pipeline.images.content import content_digest
from temi.pipeline.images.grown import Listing, continue_cache, describe
from temi.pipeline.images.left_out import found_beside
from temi.pipeline.images.recorded import record_origin
from temi.pipeline.plugins import Plugin


@dataclass(frozen=True)
class Encoding:
    """What an encoder and its views make of any image: a fingerprint that names no images, and the width D."""

    fingerprint: Fingerprint
    dim: int

    @classmethod
    def of(cls, backbone: Backbone, policy: ViewPolicy) -> "Encoding":
        """That of `backbone` with the views that `policy` draws."""
        fingerprint = Fingerprint(
            backbone=backbone.name,
            revision=backbone.revision,
            preprocessing=backbone.preprocessing.describe(),
            pooling=backbone.pooling,
            precision=backbone.arithmetic,
            view_policy=policy.describe(),
            view_seed=policy.seed if policy.count else 0,
            views=policy.count,
            images="",
        )
        return cls(fingerprint, backbone.dim)


class Maker(Protocol):
    """Who makes shards."""

    @property
    def encoding(self) -> Encoding:
        """What is made of an image."""

    def make(self, writer: ShardWriter, pending: Sequence[Shard], images: ImageSource) -> Steps:
        """Make the `pending` shards of the cache of `writer`."""


class ThisProcess:
    """Makes shards one after the other, with the encoder that `config` names."""

    def __init__(self, config: EmbedConfig) -> None:
        self._config, self._backbone, self._policy = config, load_backbone(config), view_policy(config)
        self.encoding = Encoding.of(self._backbone, self._policy)

    def batches(self, shard: Shard) -> list[range]:
        """The rows of `shard`, as they are computed."""
        return cut(shard.start, shard.stop, batch_size(self._config, self._backbone.device))

    def make(self, writer: ShardWriter, pending: Sequence[Shard], images: ImageSource) -> Steps:
        return make_shards(writer, pending, images, self._backbone, self._policy, self._config)


def embed(
    source: str,
    out: Path,
    config: EmbedConfig,
    *,
    root: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    on: str = "",
    plugins: Sequence[Plugin] = (),
) -> EmbeddingCache | None:
    """Embed all images of `source` into the cache `out`, or finish what an earlier call began.

    Parameters
    ----------
    source, root
        See `pipeline.images.open_source`.
    shard
        (i, n): make the shards whose index is i modulo n; n processes fill one cache, in any order.
    overwrite
        Delete the cache that is there first.
    on, plugins
        A Ray cluster whose nodes make the shards, ``ray`` or ``ray:ADDRESS``, and the files of the user's own that they
        need for it. `source` and `out` must be where every node finds them.

    Returns
    -------
    EmbeddingCache | None
        The finished cache, or None while other processes still owe shards.

    Raises
    ------
    UserError, CacheError
        A mistake or circumstance to mend; finished shards stay, and the same call goes on from there.
    """
    worker, workers = shard
    if not 0 <= worker < workers:
        raise UserError(f"shard {worker}/{workers} does not exist; count from 0/{workers} to {workers - 1}/{workers}")
    images = open_source(source, root=root, max_pixels=config.max_pixels)
    if worker == 0:
        for line in found_beside(images):
            print(line, file=sys.stderr)
    with _working_folder(out, overwrite) as (folder, open_writer):
        config = config if overwrite else _same_engine(config, folder)
        with _maker(config, on, plugins) as maker:
            images, manifest, listing = plan_cache(images, folder, maker.encoding, config, overwrite=overwrite)
            with open_writer(manifest, listing) as writer:
                pending = writer.pending(worker, workers)
                if worker == 0:
                    record_origin(folder, source, root, images)
                    if isinstance(writer, RemoteWriter):
                        writer.send(ORIGIN, SKIPPED)
                total = sum(one.rows for one in pending)
                show(maker.make(writer, pending, images), total, images.keys)
                return writer.finish()


def _maker(config: EmbedConfig, on: str, plugins: Sequence[Plugin]) -> AbstractContextManager[Maker]:
    if not on:
        return nullcontext(ThisProcess(config))
    from temi.pipeline.encode.ray_shards import ray_workers  # it is made of what is here

    return ray_workers(on, config, plugins)


OpenWriter = Callable[[Manifest, bytes | None], ShardWriter]


@contextmanager
def _working_folder(out: Path, overwrite: bool) -> Iterator[tuple[Path, OpenWriter]]:
    """Where shards are made, and what writes them to `out`: the folder itself, or one of the moment beside a bucket."""
    url = bucket_url(out)
    if url is None:
        (forget_views if overwrite else take_in_views)(out)
        yield out, lambda manifest, listing: _open_writer(out, manifest, listing, overwrite)
        return
    if overwrite:
        raise UserError(f"--overwrite deletes nothing in a bucket; delete {url} with the provider's tools first")
    bucket = Bucket(url)
    with tempfile.TemporaryDirectory(prefix="temi-") as name:
        sizes = pull_index(bucket, Path(name))
        try:
            yield (
                Path(name),
                lambda manifest, listing: RemoteWriter.open_in(bucket, Path(name), manifest, sizes, listing),
            )
        except USER_ERRORS as error:
            raise type(error)(str(error).replace(name, url)) from None


def _open_writer(out: Path, manifest: Manifest, listing: bytes | None, overwrite: bool) -> ShardWriter:
    """What writes the cache in `out`, or adds views to the one that is there."""
    if overwrite or not (out / MANIFEST).exists() or not lacks_views(Manifest.read(out), manifest):
        return ShardWriter.open(out, manifest, overwrite=overwrite, listing=listing)
    writer = ViewsWriter.open_in(EmbeddingCache.open(out), manifest)
    print(
        f"{out} has {counted(writer.before.views, 'view')} of every image: embedding "
        f"{manifest.views - writer.before.views} more, and what is there stays as it is",
        file=sys.stderr,
    )
    return writer


def _same_engine(config: EmbedConfig, out: Path) -> EmbedConfig:
    """`config` with torch in place of auto where torch began the cache: OpenVINO may have been installed since."""
    if config.engine != "auto" or not (out / MANIFEST).exists():
        return config
    began = Manifest.read(out).fingerprint.precision
    return config if "openvino" in began else config.model_copy(update={"engine": "torch"})


def view_policy(config: EmbedConfig) -> ViewPolicy:
    """How `config` draws views."""
    return ViewPolicy(config.views, config.seed, config.crop_scale, config.flip, config.jitter, config.turn)


def plan_cache(
    images: ImageSource, out: Path, encoding: Encoding, config: EmbedConfig, *, overwrite: bool
) -> tuple[ImageSource, Manifest, bytes | None]:
    """The images in the order of the rows, the manifest of the cache in `out` that holds them, and what it keeps of
    their list: a new cache, the one that is there, or that one grown by the images it has not."""
    content = config.digest == "content"
    now = Listing.of(images, content=content)
    digest = now.digest if now else content_digest(images) if content else images.digest
    there = Manifest.read(out) if (out / MANIFEST).exists() and not overwrite else None
    same = there is not None and there.generation == 0 and digest == there.fingerprint.images
    grown = continue_cache(images, now, out, there) if there and now and not same else None
    if there is None or grown is None:
        return images, plan(images, encoding, config, digest), now.to_parquet() if now else None
    fingerprint = replace(encoding.fingerprint, images=grown.digest)
    if not grown.added and (grown.removed, grown.changed) == (there.removed, there.changed):
        return grown, replace(there, fingerprint=fingerprint), None
    grows = "grows" if grown.added or grown.returned else "does not grow"
    print(
        f"the cache {grows}: {describe(grown)} since it was made; "
        f"its {counted(there.rows, 'row stays as it is', 'rows stay as they are')}",
        file=sys.stderr,
    )
    gone = {"removed": grown.removed, "changed": grown.changed}
    manifest = there.grown(fingerprint, grown.added, config.shard_rows, classes=grown.classes, **gone)
    return grown, manifest, grown.listing.take(range(there.rows, manifest.rows)).to_parquet()


def plan(images: ImageSource, encoding: Encoding, config: EmbedConfig, digest: str) -> Manifest:
    """The manifest of the new cache that these would make; `digest` tells the list of images."""
    rows = len(images.keys)
    shards = plan_shards(rows, config.shard_rows)
    fingerprint = replace(encoding.fingerprint, images=digest)
    return Manifest(fingerprint, rows, encoding.dim, shards, dict(images.splits), tuple(images.classes))
