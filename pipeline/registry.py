"""Named things that a user's own file can add to: objectives, baselines, backbones, image sources, starts, exports."""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar

from temi.pipeline.errors import UserError

if TYPE_CHECKING:
    from temi.pipeline.evaluate.baselines import Baseline
    from temi.pipeline.heads.objectives import Objective, Regularizer
    from temi.pipeline.results.formats import Export
    from temi.pipeline.start.find import FindStart

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name.

    Parameters
    ----------
    kind : what an entry is called in a sentence
    home : module that registers the entries of this package; imported when an entry is first looked up
    """

    def __init__(self, kind: str, home: str) -> None:
        self.kind, self._home = kind, home
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> None:
        """Add `entry` under `name`.

        Raises
        ------
        UserError
            The name is taken.
        """
        if name in self._entries:
            raise UserError(f"the {self.kind} {name!r} is there already; choose another name")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """The entry `name`. Raises UserError where there is none, with the names that there are."""
        import_module(self._home)
        if name not in self._entries:
            raise UserError(
                f"there is no {self.kind} {name!r}; choose one of {', '.join(self._entries)}, "
                "or name the file that registers it with --plugin FILE.py"
            )
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        import_module(self._home)
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of registration."""
        import_module(self._home)
        return iter(self._entries)


OBJECTIVES: "Registry[Objective]" = Registry("objective", "temi.pipeline.heads.objectives")
REGULARIZERS: "Registry[Regularizer]" = Registry("regularizer", "temi.pipeline.heads.objectives")
STARTS: "Registry[FindStart]" = Registry("start", "temi.pipeline.start.find")
BASELINES: "Registry[Baseline]" = Registry("baseline", "temi.pipeline.evaluate.baselines")
EXPORTS: "Registry[Export]" = Registry("format", "temi.pipeline.results.formats")
