"""`temi evaluate`: scores of a run or of trials."""

from pathlib import Path
from typing import Annotated

import typer

from temi.pipeline.commands.console import typed, user_errors
from temi.pipeline.commands.options import Plugins, run_here
from temi.pipeline.commands.tables import figure, print_table

commands = typer.Typer()


@commands.command()
def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            help="written by `temi train-heads`, of one run or of trials: a folder, or s3://BUCKET/NAME",
            callback=run_here,
        ),
    ],
    cache: Annotated[Path | None, typer.Argument(help="a held-out cache, or the training cache if it moved")] = None,
    baselines: Annotated[
        str,
        typer.Option(
            metavar="all|none|NAME,...",
            help="kmeans, spherical, umap, ward, hdbscan, plscan, evoc, spectral, louvain, leiden, turtle, "
            "scan, published, seed-recipe, or those of a plugin; NAME@views: on the metric that views teach",
        ),
    ] = "kmeans",
    plugin: Plugins = None,
) -> None:
    """Score a run beside baselines and the labeled ceilings; without labels, by label-free scores."""
    with user_errors():
        from temi.cache import EmbeddingCache
        from temi.cache.words import counted
        from temi.pipeline.evaluate.recipes import asks_for_all, parse_baselines
        from temi.pipeline.evaluate.tables import evaluate_run
        from temi.pipeline.evaluate.trials import evaluate_trials
        from temi.pipeline.plugins import load_plugins
        from temi.pipeline.runs.mirror import shown
        from temi.pipeline.runs.records import RESULT
        from temi.pipeline.runs.trials import is_trials

        load_plugins(plugin)
        other, chosen = EmbeddingCache.open(cache) if cache else None, parse_baselines(baselines)
        score = evaluate_trials if is_trials(run) else evaluate_run
        result = score(run, other, chosen, leave_out=asks_for_all(baselines))
        for part in result.parts:
            print_table(f"{part.name} ({counted(part.images, 'image')})", part.rows)
        if result.training is not None:
            scores = result.training
            print(
                f"label-free: loss {scores.loss:.4f}, neighbor consistency {figure(scores.neighbor_consistency)}, "
                f"head agreement {figure(scores.head_agreement)}, "
                f"expected accuracy {figure(scores.expected_accuracy)}"
            )
        print(f"written: {shown(run / RESULT)}\nnext: temi report {typed(run)}")
