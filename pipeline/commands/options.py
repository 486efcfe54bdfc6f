"""Options that several verbs share."""

import os
import sys
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


def _run_here(context: typer.Context, given: Path) -> Path:
    if ":/" not in str(given):  # before anything is imported
        return given
    with user_errors():
        from temi.cache.bucket import bucket_url
        from temi.pipeline.runs.mirror import Mirror

        if (url := bucket_url(given)) is None:
            return given
        if int(os.environ.get("RANK", "0")):  # of torchrun's processes the first writes
            return Mirror(url).folder
        mirror = Mirror.open(url)

    def send() -> None:
        with user_errors():
            if count := mirror.push():
                print(f"{url}: {count} files written", file=sys.stderr)

    context.call_on_close(send)
    return mirror.folder


OnCluster = Annotated[
    str,
    typer.Option("--on", metavar="ray[:ADDRESS]", help="have the nodes of a Ray cluster do it; needs the extra `ray`"),
]
START = "Start here"
RESULTS = "Use the result"
