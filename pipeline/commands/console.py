"""What verbs share: how they end after a user's mistake, and how they draw a merge tree."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from temi.cache import EmbeddingCache
    from temi.pipeline.runs.records import Join, MergeTree

PRINTED_CLUSTERS = 200  # of the finest trial; a larger tree is for the report


@contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake is one sentence on stderr and exit code 2; Ctrl-C says how to go on."""
    try:
        yield
    except ValueError as error:
        from temi.pipeline.errors import USER_ERRORS  # not before it is needed: it brings numpy and pydantic

        if not isinstance(error, USER_ERRORS):
            raise
        print(f"temi: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("temi: stopped; run the same command again to go on from here", file=sys.stderr)
        raise typer.Exit(130) from None


def failures(cache: "EmbeddingCache") -> str:
    """What to add behind the size of a cache in which images could not be read."""
    broken = int((~cache.ok).sum())
    return f", {broken} unreadable (see {cache.folder / 'failures.csv'})" if broken else ""


def merge_tree(tree: "MergeTree") -> Tree:
    """A merge tree to print, the coarsest clusters first; the finest share a line with those they join."""
    counts = [level.clusters for level in reversed(tree.levels)]
    apart = "".join(f", {name}={value}" for name, value in tree.settings.items())
    title = f"how {' <- '.join(map(str, counts))} clusters join{apart}: {tree.together:.1%} of the images go along"
    root = Tree(Text(title))
    if counts[-1] > PRINTED_CLUSTERS:
        root.add(Text("too many clusters to print; `temi report` shows them"))
        return root
    for node in tree.top:
        label = f"cluster {node.cluster} of {counts[0]}, {node.images:,} images"
        _add_joining(root, label, node.cluster, list(reversed(tree.joins)), counts[1:])
    return root


def _add_joining(parent: Tree, label: str, cluster: int, steps: "Sequence[Sequence[Join]]", counts: list[int]) -> None:
    """Add `cluster` to `parent`, below it those that join it in the first of `steps`, and below those the next."""
    joining = [join for join in steps[0] if join.into == cluster]
    if len(steps) == 1:
        parts = ", ".join(f"{join.cluster} ({join.share:.0%})" for join in joining) or "none mostly"
        parent.add(Text(f"{label} <- of {counts[0]}: {parts}"))
        return
    branch = parent.add(Text(label))
    for join in joining:
        label = f"{join.cluster} of {counts[0]}, {join.images:,} images ({join.share:.0%})"
        _add_joining(branch, label, join.cluster, steps[1:], counts[1:])
