"""`temi search` and `temi compare`: which settings are better, without a label."""

from pathlib import Path
from typing import Annotated

import typer

from temi.pipeline.commands.console import typed, typed_plugins, user_errors
from temi.pipeline.commands.options import (
    ConfigFile,
    OnCluster,
    Overrides,
    Overwrite,
    Plugins,
    on_this_machine,
    run_here,
)

commands = typer.Typer()

PRINTED = 15  # choices of settings; --all prints more


@commands.command()
def search(
    cache: Annotated[Path, typer.Argument(help="written by `temi embed`: a folder, or s3://BUCKET/NAME")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="STUDY",
            help="folder of the study; one that is there goes on",
            callback=on_this_machine,
        ),
    ],
    clusters: Annotated[int | None, typer.Option(help="number of clusters", min=1)] = None,
    space: Annotated[
        Path | None, typer.Option(help="TOML file of what to choose from; default: configs/search.toml")
    ] = None,
    trials: Annotated[int, typer.Option(help="trials of the study, whoever trains them")] = 64,
    together: Annotated[int, typer.Option(help="trials that train at once, in one stack")] = 16,
    seeds: Annotated[int, typer.Option(help="seeds of every trial; its score is their mean")] = 1,
    sampler: Annotated[str, typer.Option(metavar="tpe|random|cmaes", help="what chooses the next trials")] = "tpe",
    score: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="to be high: head_agreement, stability, neighbor_consistency, linear_accuracy, mean_confidence",
        ),
    ] = "head_agreement",
    halving: Annotated[
        bool, typer.Option(help="give up at 1/9 and 1/3 of the steps what is not in the best third")
    ] = True,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="sqlite|journal", help="of a new study; journal, that of --on: for a folder that machines share"
        ),
    ] = None,
    on: OnCluster = "",
    plugin: Plugins = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Search for settings by scores that need no label: many trials in one pass, as many processes as you start.

    Needs the extra `search`. Ctrl-C leaves a study that the same command goes on with.
    """
    with user_errors():
        from temi.cache import EmbeddingCache
        from temi.cache.words import counted
        from temi.pipeline.errors import UserError
        from temi.pipeline.plugins import load_plugins
        from temi.pipeline.runs.run_folder import SEARCH
        from temi.pipeline.runs.search import Search
        from temi.pipeline.runs.search import search as run_search
        from temi.pipeline.runs.space import DEFAULT_SPACE, read_space
        from temi.pipeline.runs.study import BEST, ended, hopeless, remove_study

        plugins = load_plugins(plugin)
        overrides = [*(set_ or ()), *([f"heads.clusters={clusters}"] if clusters else [])]
        wanted = Search(
            read_space(space or DEFAULT_SPACE), config, overrides, trials, together, seeds, sampler, score, halving
        )
        opened = EmbeddingCache.open(cache)
        if overwrite:
            remove_study(out)
        kind = storage or ("journal" if on else "sqlite")
        record = run_search(opened, wanted, out, storage=kind, plugins=plugins, on=on)
        print(f"{out / SEARCH}: {counted(len(record.trials), 'trial')}: {ended(record.trials)}")
        if hopeless(record.trials):
            raise UserError(
                f"no trial of {out} was trained to its end; correct the settings or the plugin, and search with "
                "another --out, or --overwrite this one"
            )
        if record.trials and record.trials[0].training:
            compare([out], score, all_=False)
            best = f"--config {typed(out / BEST)}{typed_plugins(plugin)}"
            print(f"next: temi train-heads {typed(cache)} {best} --out RUN")


@commands.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="folders of runs, of trials, or of searches", callback=run_here),
    ],
    score: Annotated[
        str, typer.Option(metavar="NAME", help="label-free score to compare by; see temi search")
    ] = "head_agreement",
    format_: Annotated[str, typer.Option("--format", metavar="table|csv|json|md")] = "table",
    all_: Annotated[bool, typer.Option("--all", help="print every choice, not the best alone")] = False,
) -> None:
    """Compare runs, trials and searches: settings that differ, means over seeds, and what is more than the seed.

    Choices of settings are compared with the best, seed by seed: "worse" where the 95 % interval of the best's lead
    over them is above zero, "even" where it is not, "?" where there is one seed (train with --seeds 5). ACC stands
    beside it where `temi evaluate` found labels; it chooses nothing.
    """
    with user_errors():
        from temi.cache.words import counted
        from temi.pipeline.commands.tables import print_choices
        from temi.pipeline.errors import UserError
        from temi.pipeline.progress import say
        from temi.pipeline.results import compare as comparing

        written = {"csv": comparing.as_csv, "json": comparing.as_json, "md": comparing.as_markdown}
        if format_ not in ("table", *written):
            raise UserError(f"there is no format {format_!r}; choose one of {', '.join(('table', *written))}")
        choices = comparing.compare(runs, score)
        notes = [comparing.warning(choices), *comparing.repeats(choices), *comparing.left_out(runs)]
        for note in filter(None, notes):
            say(f"note: {note}")
        if format_ != "table":
            print(written[format_](choices).rstrip())
            return
        printed = choices if all_ else choices[:PRINTED]
        rows = [comparing.cells(choice, choices) for choice in printed]
        print_choices(f"{counted(len(choices), 'choice')} of settings by {score}", rows)
        if len(printed) < len(choices):
            print(f"{len(choices) - len(printed)} more; --all prints them")
