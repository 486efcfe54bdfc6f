"""`temi train-heads`: a cache into a run, or into trials."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from temi.pipeline.commands.console import printed_tree, typed, user_errors
from temi.pipeline.commands.options import (
    ConfigFile,
    OnCluster,
    Overrides,
    Overwrite,
    Plugins,
    corrections_here,
    run_here,
)
from temi.pipeline.commands.tables import figure, print_choices, print_curves, print_wide

if TYPE_CHECKING:
    from temi.cache import EmbeddingCache
    from temi.pipeline.config import Config
    from temi.pipeline.features.constraints import Constraints
    from temi.pipeline.plugins import Plugin
    from temi.pipeline.results.finished import FinishedRun
    from temi.pipeline.runs.continued import Before
    from temi.pipeline.runs.records import Training, TrialRecord
    from temi.pipeline.start.count import ClusterCount

HINT = "--clusters C asks for another number, --clusters auto estimates it"

commands = typer.Typer()


@commands.command()
def train_heads(
    cache: Annotated[Path, typer.Argument(help="written by `temi embed`: a folder, or s3://BUCKET/NAME")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="RUN",
            help="run folder, or s3://BUCKET/NAME; an interrupted run there is resumed",
            callback=run_here,
        ),
    ],
    clusters: Annotated[
        str | None,
        typer.Option(
            metavar="C|C,C,...|auto[:LOW-HIGH]",
            help="number of clusters; of several, a trial for each and how they join; auto: estimated without labels",
        ),
    ] = None,
    trials: Annotated[Path | None, typer.Option(help="TOML file with a list or grid of trials: many at once")] = None,
    grid: Annotated[
        list[str] | None, typer.Option(metavar="SECTION.KEY=V,V", help="a trial for each value; may be repeated")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="train everything with so many seeds, in the same pass; see temi compare")
    ] = 1,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="go on from this finished run: its settings, and its numbers and names for the clusters that stay",
            callback=run_here,
        ),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="corrections.jsonl of an earlier run, or its folder: training keeps what it says; "
            "without --clusters, as many as were left",
            callback=corrections_here,
        ),
    ] = None,
    on: OnCluster = "",
    plugin: Plugins = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Stage two: train clustering heads on a cache. No label is read."""
    with user_errors():
        from temi.cache import EmbeddingCache
        from temi.pipeline.config import load_config
        from temi.pipeline.errors import UserError
        from temi.pipeline.heads.processes import join
        from temi.pipeline.plugins import load_plugins
        from temi.pipeline.runs.records import write_record
        from temi.pipeline.runs.train import follow, train_heads
        from temi.pipeline.runs.trials import plan_trials, with_seeds

        plugins = load_plugins(plugin)
        if join().rank > 0:
            follow()
            return
        overrides, axes, inherited = list(set_ or ()), list(grid or ()), from_ is not None and config is None
        _refuse_contradictions(out, clusters, trials, axes, seeds, overrides, from_, overwrite)
        before, earlier, told, count = None, None, None, None
        if from_ is not None:
            before, config = _open_before(from_, corrections), config or from_ / "config.toml"
        if corrections is not None:
            from temi.pipeline.results.constraints import clusters_left, read_constraints
            from temi.pipeline.results.continuing import keep_removed

            earlier, told = read_constraints(corrections)
            overrides = clusters_left(told, config, overrides, inherited)
            before = before and keep_removed(before, earlier)
        if clusters is not None:
            numbers, count = _count_clusters(clusters, cache, out, config, overrides)
            setting = f"heads.clusters={','.join(map(str, numbers))}"
            (axes if len(numbers) > 1 else overrides).append(setting)
        many = bool(trials or axes or seeds > 1)
        if many:
            planned = plan_trials(trials, axes, config, overrides)
            configs = with_seeds(planned, seeds) if seeds > 1 else planned
            _train_trials(EmbeddingCache.open(cache), configs, out, overwrite, plugins, told, on)
        else:
            if on:
                raise UserError("--on deals trials out to nodes, and this is one run; leave it out, or ask for several")
            configs = [load_config(config, overrides)]
            opened = EmbeddingCache.open(cache)
            train_heads(opened, configs[0], out, overwrite=overwrite, plugins=plugins, before=before, told=told)
        if count is not None:
            write_record(out / "clusters.json", count)
        join().dismiss()
        if earlier is not None:
            _carry_over(earlier, out)
        made = configs[0].heads.clusters
        if not any("clusters" in config.heads.model_fields_set for config in configs):
            print(f"note: {made} clusters were made because that is the default; {HINT}")
        if not many:
            _print_run(out, made, from_)


def _refuse_contradictions(
    out: Path,
    clusters: str | None,
    trials: Path | None,
    axes: list[str],
    seeds: int,
    overrides: list[str],
    from_: Path | None,
    overwrite: bool,
) -> None:
    """UserError where options do not go together, before anything is read."""
    from temi.pipeline.config import asked
    from temi.pipeline.errors import UserError
    from temi.pipeline.runs.mirror import mirror_of

    if overwrite and mirror_of(out):
        raise UserError("--overwrite deletes nothing in a bucket; give another --out, or delete the run there first")
    if clusters is not None:
        for option, given in (("--set", overrides), ("--grid", axes)):
            if "heads.clusters" in asked(given):
                raise UserError(f"--clusters and {option} heads.clusters both say how many clusters; leave one out")
    several = trials or axes or seeds > 1 or (clusters is not None and not clusters.isdecimal())
    if from_ is not None and several:
        raise UserError(
            "--from continues one run as one run; leave out --trials, --grid, --seeds and several --clusters"
        )


def _open_before(from_: Path, corrections: Path | None) -> "Before":
    """The run to go on from; a note says what a person corrected there that `corrections` do not keep."""
    from temi.cache.words import counted
    from temi.pipeline.results.continuing import corrections_left_behind, open_before, remarks_left_behind
    from temi.pipeline.runs.mirror import shown

    before = open_before(from_)
    if corrections is not None:
        return before
    left, remarks = corrections_left_behind(from_), remarks_left_behind(from_)
    if left + remarks:
        told = [counted(remarks, "mark or note", "marks and notes")] if remarks else []
        told += [counted(left, "merge, split, move or removal", "merges, splits, moves and removals")] if left else []
        print(
            f"note: of what a person corrected in {shown(from_)}, {' and '.join(told)} "
            f"{'is' if left + remarks == 1 else 'are'} not kept by --from alone; "
            f"add --corrections {typed(from_)} to train with them"
        )
    return before


def _count_clusters(
    text: str, cache: Path, out: Path, config: Path | None, overrides: list[str]
) -> tuple[list[int], "ClusterCount | None"]:
    """The numbers that `--clusters` names, or the estimate it asks for, printed with its curve."""
    from temi.cache import EmbeddingCache
    from temi.cache.schema import NEIGHBOR_FOLDER
    from temi.cache.words import counted
    from temi.pipeline.config import load_config
    from temi.pipeline.device import pick_device
    from temi.pipeline.features.features import Features
    from temi.pipeline.runs.checks import training_rows
    from temi.pipeline.start.count import estimate_clusters, parse_clusters

    asked = parse_clusters(text)
    if isinstance(asked, list):
        return asked, None
    settings, opened = load_config(config, overrides), EmbeddingCache.open(cache)
    rows, device = training_rows(opened, settings.train.split), pick_device(settings.train.device)
    features = Features.of_cache(opened, rows, out / NEIGHBOR_FOLDER, device).distinct()
    count = estimate_clusters(features, settings.start, *asked)
    print_curves("clusters", [vars(score) for score in count.curve])
    print(f"{counted(count.clusters, 'cluster')}: {count.reason}")
    return [count.clusters], count


def _carry_over(earlier: "FinishedRun", out: Path) -> None:
    """Take names, marks and what training did not keep along, into the run or into every trial."""
    from temi.pipeline.results.carry import carry_over
    from temi.pipeline.results.finished import FinishedRun
    from temi.pipeline.runs.trials import is_trials, list_trained

    folders = [out / trial.trial for trial in list_trained(out)] if is_trials(out) else [out]
    for folder in folders:
        found = str(carry_over(earlier, FinishedRun(folder)))
        print(f"{folder}: {found}" if len(folders) > 1 else found)


def _train_trials(
    cache: "EmbeddingCache",
    configs: "list[Config]",
    out: Path,
    overwrite: bool,
    plugins: "list[Plugin]",
    told: "Constraints | None",
    on: str,
) -> None:
    from temi.cache.words import counted
    from temi.pipeline.errors import UserError
    from temi.pipeline.runs.label_free import choose_trials
    from temi.pipeline.runs.mirror import shown
    from temi.pipeline.runs.records import MergeTree, read_record
    from temi.pipeline.runs.trials import MERGES, train_trials

    trials = train_trials(cache, configs, out, overwrite=overwrite, plugins=plugins, told=told, on=on)
    trained = [trial for trial in trials if trial.training is not None]
    if trained:
        chosen = choose_trials(trained)
        best = [even[0] for even in chosen.values() if len(even) == 1]
        print_choices(
            f"{counted(len(trials), 'trial')}, by scores that need no label",
            [_row(one, one in best) for one in trained],
        )
        _print_chosen(chosen, len({trial.training.clusters for trial in trained if trial.training}))
    for trial in trials:
        if trial.stopped:
            print(f"note: {trial.name}: {trial.stopped}")
    if not trained:
        raise UserError(f"none of the {len(trials)} trials in {out} could be trained; see the notes above")
    for tree in read_record(list[MergeTree], out / MERGES):
        print_wide(printed_tree(tree))
    print(
        f"written: {shown(out / 'trials.json')}\nnext: temi evaluate {typed(out)}, "
        f"temi compare {typed(out)}, temi report {typed(out)}"
    )


def _print_chosen(chosen: "dict[int, list[TrialRecord]]", numbers: int) -> None:
    """The trial to trust, or those that are even; of each of several `numbers` of clusters."""
    from temi.cache.words import counted

    if numbers > 1:
        print("note: scores of different numbers of clusters do not compare, so no trial is best of all")
    for clusters, even in chosen.items():
        told = "most trustworthy" if len(even) == 1 else "even"
        of = f" of {counted(clusters, 'cluster')}" if numbers > 1 else ""
        print(f"{told} without labels{of}: {', '.join(trial.name for trial in even)}")


def _row(trial: "TrialRecord", best: bool) -> dict[str, str]:
    """What a table of 80 columns shows of a trial."""
    from temi.pipeline.runs.records import short_settings

    scores = trial.training
    assert scores is not None  # others are told apart from the table
    return {
        "": "*" if best else "",
        "trial": trial.trial.removeprefix("trial-"),
        "settings": short_settings(trial.settings),
        "agree": figure(scores.head_agreement),
        "stable": figure(scores.stability),
        "sure": figure(scores.mean_confidence),
        "used": str(scores.used_clusters),
        "loss": f"{scores.loss:.4f}",
    }


def _print_run(run: Path, asked: int, before: Path | None) -> None:
    """What became of `asked` clusters, which of those `before` they are, and what to do next."""
    from temi.pipeline.results.continuing import hand_on_names
    from temi.pipeline.runs.continued import describe
    from temi.pipeline.runs.mirror import shown, with_urls
    from temi.pipeline.runs.records import Training, read_record

    _print_training(read_record(Training, run / "training.json"), asked)
    if before is not None:
        for line in describe(hand_on_names(before, run)):
            print(with_urls(line))
    print(f"assignments: {shown(run / 'assignments.csv')}\nnext: temi evaluate {typed(run)}")


def _print_training(training: "Training", asked: int) -> None:
    from temi.cache.words import counted
    from temi.pipeline.runs.calibration import WITHIN

    empty = asked - training.used_clusters  # not `training.clusters`, which counts numbers that were given up
    sure, expected = f"mean confidence {training.mean_confidence:.2f}", training.expected_accuracy
    if expected is not None:
        sure = (
            f"about {expected:.0%} of the images are expected to be where they belong, give or take {100 * WITHIN:.0f} "
            f"points, if there are {asked} kinds of them (no label was read)"
        )
    print(
        f"{counted(training.images, 'image')}, {counted(training.steps, 'step')} in {training.seconds:.1f} s; "
        f"{training.used_clusters} of {counted(asked, 'cluster')} used, sizes {training.smallest_cluster} to "
        f"{training.largest_cluster}; {sure}"
    )
    if empty > 0:
        print(f"note: {counted(empty, 'cluster asked for is', 'clusters asked for are')} empty")
    if training.skipped_steps:
        print(f"note: skipped {counted(training.skipped_steps, 'step')} with a non-finite loss or gradient")
