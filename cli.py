"""The command line: `temi`, or `python cli.py`. Every verb is in pipeline/commands; this puts them together."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from temi.pipeline.commands import cache, embed, evaluate, first, results, search, train
from temi.pipeline.commands.console import EXIT_CODES, open_closed_outputs, output_errors


class Temi(TyperGroup):
    """All verbs. An output may be full or closed also for what no verb prints, such as --help."""

    def main(self, *words: Any, **named: Any) -> Any:
        open_closed_outputs()
        with output_errors():
            try:
                return super().main(*words, **named)
            finally:
                sys.stdout.flush()


app = typer.Typer(
    cls=Temi,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Cluster images without labels: embed once, train clustering heads in seconds, look at the result.",
)
for part in (embed, train, search, evaluate, first, results):
    app.add_typer(part.commands)
app.add_typer(cache.commands, name="cache", short_help=str(cache.commands.info.help))
for part in (embed, train, search, evaluate, first, results, cache):
    for verb in part.commands.registered_commands:
        verb.epilog = EXIT_CODES
        verb.short_help = " ".join((verb.callback.__doc__ or "").split("\n\n")[0].split())  # whole, not cut at a width
        for kind in verb.callback.__annotations__.values():
            for parameter in getattr(kind, "__metadata__", ()):
                parameter.readable = False  # what may not be read is told in a sentence, not in a box of typer's


def _version(wanted: bool) -> None:
    if wanted:
        from temi import __version__

        print(f"temi {__version__}")
        raise typer.Exit


@app.callback()
def temi(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    from temi.pipeline.limits import settle_threads

    settle_threads()


if __name__ == "__main__":
    app()
