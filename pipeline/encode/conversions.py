"""Networks that were converted for OpenVINO, kept so that a second run need not convert again.

They lie in the user's own cache folder, $XDG_CACHE_HOME/temi/openvino or ~/.cache/temi/openvino, and not beside a cache
of embeddings: all folders that are embedded with one backbone share its conversion, and a published cache holds no
weights. The folder may be deleted at any time. Only its owner can read or write it; it holds networks, not code.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from temi.cache.files import user_cache

KEPT = 4  # conversions, each as large as its weights; the one unused for longest goes first
MODEL = "model.xml"  # the graph; its weights are beside it, in model.bin


@dataclass(frozen=True)
class Identity:
    """What a conversion depends on: the encoder, how pixels are normalized, the versions of OpenVINO and torch."""

    name: str
    revision: str
    pooling: str
    pixels: tuple[object, ...]
    versions: tuple[str, str]

    @property
    def key(self) -> str:
        """The folder of the conversion."""
        return xxhash.xxh3_128_hexdigest(json.dumps(asdict(self), sort_keys=True).encode())


class Conversions:
    """Kept networks by what they were made from."""

    def __init__(self) -> None:
        self.folder = user_cache("openvino")

    def find(self, identity: Identity) -> Path | None:
        """The network made from what `identity` says, if it is kept."""
        path = self.folder / identity.key / MODEL
        if not path.is_file():
            return None
        _touch(path.parent)
        return path

    def keep(self, identity: Identity, save: Callable[[Path], None]) -> None:
        """Let `save` write a network; it is found once it is whole. Without room on the disk nothing is kept."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as scratch:
                save(Path(scratch) / MODEL)
                place = self.folder / identity.key
                shutil.rmtree(place, ignore_errors=True)
                os.replace(scratch, place)
            self._prune()
        except (OSError, RuntimeError):  # OpenVINO's own word for a full disk is RuntimeError
            return

    def _prune(self) -> None:
        by_use = sorted(self.folder.iterdir(), key=lambda place: place.stat().st_mtime, reverse=True)
        for place in by_use[KEPT:]:
            shutil.rmtree(place, ignore_errors=True)


def _touch(path: Path) -> None:
    """Mark as used now; a read-only folder keeps its order."""
    try:
        os.utime(path)
    except OSError:
        return
