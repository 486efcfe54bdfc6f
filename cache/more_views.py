"""Views added to a finished cache: it is made anew beside itself, and takes its own place once the last shard is there.

::

    CACHE/.more-views/    the cache with more views while it is made; a killed process goes on there
    CACHE/.all-views/     the same, finished: its files are on their way into CACHE

Until then CACHE stays what it is, for any number of readers. The files are moved by renaming. A process that is killed
meanwhile leaves a cache that says it is unfinished, and the next `temi embed` moves the rest.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Self

from temi.cache.files import LOCK, Lock, os_errors, sync_folder
from temi.cache.manifest import Manifest, Viewed
from temi.cache.schema import MANIFEST, CacheError
from temi.cache.store import EmbeddingCache
from temi.cache.words import counted
from temi.cache.writer import ShardWriter

MORE, ALL = ".more-views", ".all-views"


class ViewsWriter(ShardWriter):
    """Writes the shards of a cache that is to have more views than it has.

    Attributes
    ----------
    before : the cache as it is
    """

    before: EmbeddingCache

    @classmethod
    def open_in(cls, before: EmbeddingCache, manifest: Manifest) -> Self:
        """Begin to make `before` as `manifest` wants it, or go on.

        Raises
        ------
        CacheError
            The cache has grown, or another number of views is being added.
        """
        home = before.folder
        if before.manifest.generation:
            raise CacheError(
                f"{home} has grown since it was made, and views are added only to a cache that has not; "
                f"embed into a new folder with embed.views={manifest.views}"
            )
        made = Viewed(before.views, before.digest)
        wanted = replace(manifest, viewed=(*before.manifest.viewed, made))
        begun = home / MORE
        if (begun / MANIFEST).exists() and (found := Manifest.read(begun)) != wanted:
            raise CacheError(
                f"{home} is on its way from {before.views} to {counted(found.views, 'view')}; finish that with "
                f"embed.views={found.views}, or delete {begun}"
            )
        writer = cls.open(begun, wanted)
        assert isinstance(writer, cls)
        writer.before = before
        return writer

    def finish(self) -> EmbeddingCache | None:
        """Put the cache into its place, once all its shards are there; None while other workers still owe some."""
        home = self.before.folder
        with _writing(home):
            if self.folder.exists():  # else another worker was faster
                if super().finish() is None:
                    return None
                os.rename(self.folder, home / ALL)
                sync_folder(home)
        take_in_views(home)
        return EmbeddingCache.open(home)


def lacks_views(there: Manifest, asked: Manifest) -> bool:
    """Whether `asked` is the cache that is `there`, with more views."""
    here = there.fingerprint
    same = replace(asked.fingerprint, views=here.views)
    if not here.views:  # nothing said yet how views are made
        same = replace(same, view_policy=here.view_policy, view_seed=here.view_seed)
    fewer = here.views < asked.views and asked.generation == there.generation
    return fewer and not there.differences(replace(asked, fingerprint=same))


def take_in_views(home: Path) -> None:
    """Move a cache whose views are all there into its place, where a process was killed before it had done so."""
    done = home / ALL
    if not done.exists():
        return
    with os_errors(home, "move the views into"), _writing(home):
        if not done.exists():
            return  # another process was faster
        for path in done.glob("shard-*.json"):  # from here on the cache is unfinished, and says so
            (home / path.name).unlink(missing_ok=True)
        sync_folder(home)
        for pattern in (MANIFEST, "shard-*.h5", "shard-*.json"):
            for path in sorted(done.glob(pattern)):
                os.replace(path, home / path.name)
            sync_folder(home)
        shutil.rmtree(done)


def _writing(home: Path) -> Lock:
    """What a process holds while it changes which files make up the cache."""
    return Lock.wait_for(home / f"manifest{LOCK}")


def forget_views(home: Path) -> None:
    """Drop views that are being added, where the cache itself is to be destroyed."""
    for name in (MORE, ALL):
        shutil.rmtree(home / name, ignore_errors=True)
