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
        full = {**recipe, "embeddings": self.digest}

        def save(folder: Path, made: Arrays) -> None:
            save_kept(folder, name, full, made)

        return self._once(f"{name} {sorted(recipe.items())}", lambda folder: load_kept(folder, name, full), make, save)

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

        def make() -> Arrays:
            found, how = find()
            attributes.update(how)
            return found

        def save(folder: Path, found: Arrays) -> None:
            save_neighbors(folder, key, found["index"], found["similarity"], attributes)

        return self._once(f"neighbors {kind} {k}", load, make, save)

    def _once(
        self,
        key: str,
        load: Callable[[Path], Arrays | None],
        make: Callable[[], Arrays],
        save: Callable[[Path, Arrays], None],
    ) -> Arrays:
        if key in self._here:
            return self._here[key]
        for folder in self.folders:
            if (found := load(folder)) is not None:
                return found
        made = make()
        for folder in self.folders:
            with suppress(CacheError):  # this one cannot be written to
                save(folder, made)
                return made
        self._here[key] = made
        return made
