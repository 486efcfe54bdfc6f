"""`temi demo` and `temi doctor`: the first minutes."""

from pathlib import Path
from typing import Annotated

import typer

from temi.pipeline.commands.console import user_errors
from temi.pipeline.commands.embed import embed
from temi.pipeline.commands.evaluate import evaluate
from temi.pipeline.commands.options import START, on_this_machine
from temi.pipeline.commands.results import report
from temi.pipeline.commands.train import train_heads

commands = typer.Typer()


@commands.command(rich_help_panel=START)
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="holds the cache and the run", callback=on_this_machine)
    ] = Path("demo"),
) -> None:
    """Cluster scikit-learn's 1,797 digits, from images to a report: nothing to download, a few minutes on a CPU."""
    from temi.pipeline.evaluate.recipes import CONFIGS

    embed("digits", out / "cache", config=CONFIGS / "demo.toml")
    train_heads(out / "cache", out / "run", config=CONFIGS / "demo.toml")
    evaluate(out / "run")
    report(out / "run")


@commands.command(rich_help_panel=START)
def doctor(
    folder: Annotated[Path, typer.Argument(help="where caches and runs would go")] = Path("."),
) -> None:
    """Say what this machine has for temi and how to install what is missing; exit code 1 if nothing can work."""
    with user_errors():
        from temi.pipeline.commands.machine import examine

        findings = examine(folder)
        for finding in findings:
            print(f"{'ok ' if finding.fine else 'NO ' if finding.needed else '-  '} {finding.subject}: {finding.found}")
            if finding.advice:
                print(f"      {finding.advice}")
        if any(finding.needed and not finding.fine for finding in findings):
            raise typer.Exit(1)
        print("next: temi demo, or temi embed FOLDER --out CACHE")
