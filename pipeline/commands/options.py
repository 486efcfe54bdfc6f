"""Options that several verbs share."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from temi.pipeline.commands.console import user_errors

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings; see configs/default.toml")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="one setting; may be repeated")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="destroy what --out holds; the default is to resume it")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="a file of your own that registers what settings or SOURCE name; it is code and is run; may be repeated",
    ),
]


def run_here(context: typer.Context, given: Path | list[Path] | None) -> Path | list[Path] | None:
    """The folder of a run; for one in a bucket that which stands for it, and goes up when the command has ended."""
    if isinstance(given, list):
        return [_run_here(context, one) for one in given]
    return None if given is None else _run_here(context, given)


def corrections_here(context: typer.Context, given: Path | None) -> Path | None:
    """The same for the corrections of a run, which may be named by their file."""
    if given is not None and ":/" in str(given):
        from temi.pipeline.results.corrections_file import CORRECTIONS

        if given.name == CORRECTIONS:
            return _run_here(context, given.parent) / CORRECTIONS
    return None if given is None else _run_here(context, given)


def _run_here(context: typer.Context, given: Path) -> Path:
    if ":/" not in str(given):  # before anything is imported
        return given
    with user_errors():
        from temi.cache.bucket import bucket_url
        from temi.cache.words import counted
        from temi.pipeline.runs.mirror import Mirror

        if (url := bucket_url(given)) is None:
            return here_or_in_a_bucket(given)
        if int(os.environ.get("RANK", "0")):  # of torchrun's processes the first writes
            return Mirror(url).folder
        mirror = Mirror.open(url)

    def send() -> None:
        with user_errors():
            if count := mirror.push():
                print(f"{url}: {counted(count, 'file')} written", file=sys.stderr)

    context.call_on_close(send)
    return mirror.folder


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")  # also one that was made a path of; C:/ is a drive


def on_this_machine(given: Path | None) -> Path | None:
    """What a command writes that writes to no bucket: a URL is refused, which would become a folder of that name."""
    if found := _URL.fullmatch(str(given)):
        _refuse(
            f"{found[1]}://{found[2]} is a URL, and this command writes to this machine only; "
            "give a path here, and copy there what it wrote"
        )
    return given


def here_or_in_a_bucket(given: Path) -> Path:
    """What a command reads or writes that may be in a bucket; any other URL is refused."""
    if found := _URL.fullmatch(str(given)):
        with user_errors():
            from temi.cache.bucket import PACKAGES, bucket_url

            if bucket_url(given) is None:
                taken = ", ".join(f"{kind}://" for kind in PACKAGES)
                _refuse(f"{found[1]}://{found[2]} is no place of caches and runs; give a folder, or a URL of {taken}")
    return given


def file_ending(suffix: str) -> Callable[[Path | None], Path | None]:
    """What a command writes as a file of one kind: a name of another kind may be a file that is not to be lost."""

    def checked(given: Path | None) -> Path | None:
        on_this_machine(given)
        if given is not None and given.suffix.lower() != suffix:
            _refuse(f"--out {given} must end in {suffix}")
        return given

    return checked


def _refuse(sentence: str) -> None:
    with user_errors():
        from temi.pipeline.errors import UserError

        raise UserError(sentence)


OnCluster = Annotated[
    str,
    typer.Option("--on", metavar="ray[:ADDRESS]", help="have the nodes of a Ray cluster do it; needs the extra `ray`"),
]
START = "Start here"
RESULTS = "Use the result"
