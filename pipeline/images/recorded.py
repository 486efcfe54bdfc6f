"""Where the images behind a cache are: recorded by stage one, looked up to show or export them."""

import json
from pathlib import Path

from temi.cache import EmbeddingCache
from temi.cache.files import write_atomic
from temi.cache.schema import ORIGIN
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageSource, open_source
from temi.pipeline.images.content import list_digest
from temi.pipeline.images.torchvision_sets import SETS


def record_origin(cache: Path, source: str, root: Path | None) -> None:
    """Note in the folder of a cache which `source` it is being made from.

    Not in the fingerprint: a folder of images may move without any embedding changing.
    """
    named = source == "digits" or source in SETS or source.startswith(("hf:", "hf-stream:"))
    origin = {"source": source if named else str(Path(source).resolve()), "root": str(root.resolve()) if root else None}
    write_atomic(cache / ORIGIN, (json.dumps(origin, indent=1) + "\n").encode("utf-8", "backslashreplace"))


def open_images(cache: EmbeddingCache, source: str | None, max_pixels: int) -> ImageSource:
    """The images that `cache` was made from: at `source`, or where they were when it was made.

    Raises
    ------
    UserError
        They are not there, or the images there are others.
    """
    root, given = None, source is not None
    if source is None:
        source, root = _recorded(cache.folder)
    images = open_source(source, root=root, max_pixels=max_pixels)
    if images.digest != list_digest(cache.manifest.fingerprint.images):
        advice = "give the original images" if given else "give the folder of the original images by --images"
        raise UserError(f"the images in {source} are not those that {cache.folder} was made from; {advice}")
    return images


def _recorded(cache: Path) -> tuple[str, Path | None]:
    try:
        origin = json.loads((cache / ORIGIN).read_text(encoding="utf-8"))
        return str(origin["source"]), Path(origin["root"]) if origin["root"] else None
    except FileNotFoundError:
        raise UserError(f"{cache} does not say where its images are; give them by --images") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{cache / ORIGIN} cannot be read; delete it and give the images by --images") from None
