"""What was made of some embeddings is made once: kept in a folder that can be written to, else in memory."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from temi.cache import CacheError, load_neighbors, save_neighbors
from temi.cache.kept import Arrays, Recipe, load_kept, save_kept
from temi.cache.neighbors import Attribute, selection_digest


class Memory:
    """Arrays by name and recipe, for one set of embeddings.

    Parameters
    ----------
    digest : names the embeddings on disk
    folders : where arrays are kept, the first that can be written to; none: in memory alone
    """

    def __init__(self, digest: str = "", folders: tuple[Path, ...] = ()) -> None:
        self.digest, self.folders = digest, folders
        self._here: dict[str, Arrays] = {}

    def of_rows(self, rows: Int64[np.ndarray, " M"]) -> "Memory":
        """A memory in the same place for some of the rows."""
        return Memory(f"{self.digest}-{selection_digest(rows)}", self.folders)

    def arrays(self, name: str, recipe: Recipe, make: Callable[[], Arrays]) -> Arrays:
        """The arrays that `make` returns, made once for this recipe; a file that is damaged is made again."""
        if (arrays := self.recall(name, recipe)) is None:
            arrays = make()
            self.keep(name, recipe, arrays)
        return arrays

    def recall(self, name: str, recipe: Recipe) -> Arrays | None:
        """What was kept for this recipe, here or by another process; None where nothing is, or it is damaged."""
        full = {**recipe, "embeddings": self.digest}
        return self._recall(_key(name, recipe), lambda folder: load_kept(folder, name, full))

    def keep(self, name: str, recipe: Recipe, arrays: Arrays) -> None:
        """Keep arrays under everything that they depend on besides the embeddings."""
        full = {**recipe, "embeddings": self.digest}
        self._keep(_key(name, recipe), arrays, lambda folder: save_kept(folder, name, full, arrays))

    def graph(self, k: int, kind: str, find: Callable[[], tuple[Arrays, dict[str, Attribute]]]) -> Arrays:
        """A neighbor graph, found once: `index` and `similarity`; `find` also says how.

        Raises
        ------
        CacheError
            A graph that is kept is damaged.
        """
        key = hashlib.sha256(f"{self.digest} cosine {kind} {k}".encode()).hexdigest()[:16]
        attributes: dict[str, Attribute] = {"metric": "cosine", "k": k, "scale": kind, "embeddings": self.digest}

        def load(folder: Path) -> Arrays | None:
            stored = load_neighbors(folder, key)
            return None if stored is None else {"index": stored[0], "similarity": stored[1]}

        name = f"neighbors {kind} {k}"
        if (graph := self._recall(name, load)) is None:
            found, how = find()
            graph = found
            self._keep(name, found, lambda folder: _save_graph(folder, key, found, attributes | how))
        return graph

    def _recall(self, key: str, load: Callable[[Path], Arrays | None]) -> Arrays | None:
        if key in self._here:
            return self._here[key]
        return next((found for folder in self.folders if (found := load(folder)) is not None), None)

    def _keep(self, key: str, arrays: Arrays, save: Callable[[Path], None]) -> None:
        for folder in self.folders:
            with suppress(CacheError):  # this one cannot be written to
                save(folder)
                return
        self._here[key] = arrays


def _save_graph(folder: Path, key: str, graph: Arrays, attributes: dict[str, Attribute]) -> None:
    save_neighbors(folder, key, graph["index"], graph["similarity"], attributes)


def _key(name: str, recipe: Recipe) -> str:
    return f"{name} {sorted(recipe.items())}"
