"""What verbs share: how they end after a user's mistake, hints, and the merge tree."""

import errno
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from temi.cache import EmbeddingCache
    from temi.pipeline.runs.records import Join, MergeTree

EXIT_CODES = "Exit codes: 0 done; 1 something was found to be wrong; 2 a mistake, told in one sentence; 130 Ctrl-C."
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_MEMORY = ("failed to map segment", "cannot allocate memory")  # in what the loader says of a library
NAMED_CLASSES = 6  # of those found by `temi embed`; more are counted
PRINTED_CLUSTERS = 200  # of the finest trial; a larger tree is for the report


@contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake is one sentence on stderr and exit code 2; Ctrl-C says how to go on.

    A full output is such a mistake, and a place that may not be read or written.
    """
    _refuse_deleted_folder()
    try:
        _accept_any_name()
        with output_errors():
            with _plugin_errors():
                yield
            sys.stdout.flush()
    except ValueError as error:
        from temi.pipeline.errors import USER_ERRORS  # not before it is needed: it brings numpy and pydantic

        if not isinstance(error, USER_ERRORS):
            raise
        from temi.pipeline.runs.mirror import with_urls

        print(f"temi: {with_urls(str(error))}", file=sys.stderr)
        raise typer.Exit(2) from None
    except ImportError as error:
        reason = next((line for line in str(error).splitlines() if any(told in line.lower() for told in NO_MEMORY)), "")
        if not reason:
            raise
        print(
            f"temi: a library cannot be loaded ({reason.strip()}): the memory that a process may have here "
            "(`ulimit -v`) is too little; raise the limit, and rerun",
            file=sys.stderr,
        )
        raise typer.Exit(2) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = max(Path(str(error.filename)).parts, key=len)
            print(f"temi: the name {name[:40]}... is too long for a file or its path; shorten it", file=sys.stderr)
            raise typer.Exit(2) from None
        if isinstance(error, PermissionError) and error.filename is not None:
            place = _in_the_way(Path(os.fsdecode(error.filename)))
            print(
                f"temi: cannot use {place}: permission denied; ask whom it belongs to, or change its permissions",
                file=sys.stderr,
            )
            raise typer.Exit(2) from None
        raise
    except KeyboardInterrupt:
        print("temi: stopped; run the same command again to go on from here", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def output_errors() -> Iterator[None]:
    """A full output is one sentence and exit code 2; a closed one, as behind `| head`, ends quietly."""
    try:
        yield
    except BrokenPipeError:
        _close_output()
        sys.exit(0)
    except OSError as error:
        if error.filename is not None or error.errno not in FULL:
            raise
        _close_output()
        print(f"temi: cannot write the output: {error.strerror}; write it to another place", file=sys.stderr)
        sys.exit(2)


def open_closed_outputs() -> None:
    """What is printed goes nowhere where the shell closed an output by `>&-`: the work is asked for all the same."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # until the program ends


def refuse_closed_output() -> None:
    """Raise a UserError where nothing could read what a command is asked to print."""
    from temi.pipeline.errors import UserError

    if getattr(sys.stdout, "name", None) == os.devnull:  # what `open_closed_outputs` put there
        raise UserError("cannot write the output: it is closed; give --out, or leave it open")


@contextmanager
def _plugin_errors() -> Iterator[None]:
    """An error in a user's own file is a user's mistake, wherever it is run from."""
    try:
        yield
    except Exception as error:
        from temi.pipeline.errors import USER_ERRORS  # not before they are needed: they bring numpy and pydantic
        from temi.pipeline.plugins import fault_of_plugin

        told = None if isinstance(error, (BrokenPipeError, *USER_ERRORS)) else fault_of_plugin(error)
        if told is None:
            raise
        raise told from error


def _in_the_way(path: Path) -> Path:
    """The first folder on the way to `path` that may not be entered; `path`, where all may be."""
    return next((folder for folder in reversed(path.absolute().parents) if not os.access(folder, os.X_OK)), path)


def _close_output() -> None:
    """What is still to be flushed at exit goes nowhere."""
    from temi.pipeline.progress import send_nowhere  # not before it is needed: it brings bars

    send_nowhere(sys.stdout)


def _refuse_deleted_folder() -> None:
    """Libraries end the program without a sentence where the folder that it runs in is gone."""
    try:
        Path.cwd()
    except FileNotFoundError:
        print("temi: the folder that you are in was deleted; go to another one by cd", file=sys.stderr)
        raise typer.Exit(2) from None


def typed(path: Path | str) -> str:
    """A path as a shell takes it, for hints that can be pasted; the URL, where a folder stands for one."""
    from temi.pipeline.runs import mirror  # not before it is needed

    return mirror.typed(path)


def typed_plugins(files: Sequence[Path] | None) -> str:
    """The options that name these plugins, to add to a command in a hint."""
    return "".join(f" --plugin {typed(file)}" for file in files or ())


def _accept_any_name() -> None:
    """A byte of a name that is not UTF-8 is printed as ``\\udcXX`` instead of ending the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def known(cache: "EmbeddingCache") -> str:
    """What was taken for labels and splits; neither is read in training."""
    from temi.cache.words import counted

    names = ", ".join(cache.classes[:NAMED_CLASSES]) + (", ..." if len(cache.classes) > NAMED_CLASSES else "")
    classes = counted(len(cache.classes), "class", "classes")
    labels = f"labels of {classes} ({names}), for scores only" if cache.classes else "no labels"
    splits = ", ".join(f"{name} {stop - start:,}" for name, (start, stop) in cache.splits.items())
    return f"{labels}; {f'splits {splits}' if splits else 'no splits'}"


def size(cache: "EmbeddingCache", noun: str) -> str:
    """How many images, each a `noun`, of which width and with how many views."""
    from temi.cache.words import counted

    return f"{counted(cache.rows, noun)} x {cache.dim}, {counted(cache.views, 'view')} each"


def failures(cache: "EmbeddingCache") -> str:
    """What to add behind the size of a cache of whose images some could not be read, or are gone."""
    broken, gone = len(cache.failures), len(cache.gone)
    unread = f", {broken} unreadable (see {cache.folder / 'failures.csv'})" if broken else ""
    return unread + (f", {gone} removed or changed since" if gone else "")


def printed_tree(tree: "MergeTree") -> Tree:
    """A merge tree to print, the coarsest clusters first; the finest share a line with those they join."""
    from temi.cache.words import counted

    counts = [level.clusters for level in reversed(tree.levels)]
    apart = "".join(f", {name}={value}" for name, value in tree.settings.items())
    title = f"how {' <- '.join(map(str, counts))} clusters join{apart}: {tree.together:.1%} of the images go along"
    root = Tree(Text(title))
    if counts[-1] > PRINTED_CLUSTERS:
        root.add(Text("too many clusters to print; `temi report` shows them"))
        return root
    for node in tree.top:
        label = f"cluster {node.cluster} of {counts[0]}, {counted(node.images, 'image')}"
        _add_joining(root, label, node.cluster, list(reversed(tree.joins)), counts[1:])
    return root


def _add_joining(parent: Tree, label: str, cluster: int, steps: "Sequence[Sequence[Join]]", counts: list[int]) -> None:
    """Add `cluster` to `parent`, below it those that join it in the first of `steps`, and below those the next."""
    from temi.cache.words import counted

    joining = [join for join in steps[0] if join.into == cluster]
    if len(steps) == 1:
        parts = ", ".join(f"{join.cluster} ({join.share:.0%})" for join in joining) or "none mostly"
        parent.add(Text(f"{label} <- of {counts[0]}: {parts}"))
        return
    branch = parent.add(Text(label))
    for join in joining:
        label = f"{join.cluster} of {counts[0]}, {counted(join.images, 'image')} ({join.share:.0%})"
        _add_joining(branch, label, join.cluster, steps[1:], counts[1:])
