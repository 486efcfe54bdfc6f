"""Where the images behind a cache are: recorded by stage one, looked up to show or export them."""

import glob
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from temi.cache import EmbeddingCache
from temi.cache.files import LOCK, Lock, write_atomic
from temi.cache.schema import ORIGIN, SKIPPED
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageSource, find_kind, open_source
from temi.pipeline.images.content import list_digest
from temi.pipeline.images.grown import GrownImages, Listing, read_listing
from temi.pipeline.images.left_out import skipped_csv
from temi.pipeline.images.source import KINDS


def record_origin(cache: Path, source: str, root: Path | None, images: ImageSource) -> None:
    """Note in the folder of a cache which `source` it is being made from, and what was left out there.

    Not in the fingerprint: a folder of images may move without any embedding changing.
    """
    kind = find_kind(source)
    origin: dict[str, Any] = {
        "source": str(Path(source).resolve()) if kind is None or kind.is_path else source,
        "root": str(root.resolve()) if root else None,
        "kind": kind.name if kind else "folder",
    }
    if files := _escaped_names(images):
        origin["files"] = files
    text = json.dumps(origin, indent=1) + "\n"  # ASCII: a byte of a name that is not UTF-8 becomes \\udcXX
    with Lock.wait_for(cache / f"{ORIGIN}{LOCK}"):  # two commands may start in one instant
        write_atomic(cache / ORIGIN, text.encode())
        if images.skipped:
            write_atomic(cache / SKIPPED, skipped_csv(images.skipped))
        else:
            (cache / SKIPPED).unlink(missing_ok=True)


def _escaped_names(images: ImageSource) -> dict[str, str]:
    """The file of every image whose key is not its name: one that is not UTF-8, whose bytes are kept this way."""
    files = {key: images.path(row) for row, key in enumerate(images.keys) if "\\" in key}
    return {key: str(path) for key, path in files.items() if path and not str(path).endswith(key)}


def open_images(cache: EmbeddingCache, source: str | None, max_pixels: int) -> ImageSource:
    """The images that `cache` was made from: at `source`, or where they were when it was made.

    Row by row those of the cache, also where the place has more of them now, or misses some.

    Raises
    ------
    UserError
        They are not there, or the images there are others.
    """
    root, given = None, source is not None
    if source is None:
        source, root = _recorded(cache.folder)
    # Absolute where it is no name of a data set, and perhaps a pattern.
    if not given and Path(source).is_absolute() and not (Path(source).exists() or any(glob.iglob(source))):
        raise UserError(
            f"{source}, where the images of {cache.folder} were, does not exist; if they moved, give their new place "
            "by --images"
        )
    images = open_source(source, root=root, max_pixels=max_pixels)
    if images.digest == list_digest(cache.manifest.fingerprint.images):
        return images
    if (found := _found_again(cache, images)) is not None:
        return found
    advice = "give the original images" if given else "give the folder of the original images by --images"
    raise UserError(f"the images in {source} are not those that {cache.folder} was made from; {advice}")


def _found_again(cache: EmbeddingCache, images: ImageSource) -> GrownImages | None:
    """The images of the rows of `cache` in a place that has changed since; None where none of them is there."""
    now, before = Listing.of(images), read_listing(cache.folder, cache.manifest)
    if now is None or before is None:
        return None
    found = GrownImages(images, now, replace(before, contents=()), cache.classes)
    return found if found.kept else None


def _recorded(cache: Path) -> tuple[str, Path | None]:
    try:
        origin = json.loads((cache / ORIGIN).read_text(encoding="utf-8"))
        source, root = str(origin["source"]), Path(origin["root"]) if origin["root"] else None
        kind = str(origin.get("kind") or "")
    except FileNotFoundError:
        raise UserError(f"{cache} does not say where its images are; give them by --images") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        raise UserError(f"{cache / ORIGIN} cannot be read; delete it and give the images by --images") from None
    if kind and kind not in {known.name for known in KINDS}:
        raise UserError(f"the images of {cache} come through the source {kind!r} of a plugin; name it by --plugin FILE")
    return source, root
