"""Commands that use a finished run: parse, call, print. `cli` adds them to `temi`."""

import csv
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from temi.pipeline.commands.console import refuse_closed_output, typed, typed_plugins, user_errors
from temi.pipeline.commands.options import RESULTS, Plugins, file_ending, on_this_machine, run_here

commands = typer.Typer()

Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="written by `temi train-heads`: a folder, or s3://BUCKET/NAME", callback=run_here
    ),
]
Images = Annotated[
    str | None, typer.Option("--images", help="where the training images are, if they moved since `temi embed`")
]
Cache = Annotated[Path | None, typer.Option("--cache", help="the training cache, if it moved since `temi train-heads`")]


class Link(StrEnum):
    """How `temi export --format folders` puts images into folders."""

    symlink = "symlink"
    hardlink = "hardlink"
    copy = "copy"


@commands.command(rich_help_panel=RESULTS)
def report(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="default: RUN/report.html", callback=file_ending(".html")),
    ] = None,
    images: Images = None,
    cache: Cache = None,
    plugin: Plugins = None,
) -> None:
    """Write one HTML page to look at the clusters of RUN: map, typical and uncertain images, training, comparison.

    Of a folder of trials: their comparison, and how the clusters of one number join into those of another.
    """
    with user_errors():
        from temi.pipeline.plugins import load_plugins
        from temi.pipeline.report.pages import write_report
        from temi.pipeline.report.trials import write_overview
        from temi.pipeline.results.finished import FinishedRun
        from temi.pipeline.results.lists import LISTS
        from temi.pipeline.runs.trials import is_trials

        load_plugins(plugin)
        trials = is_trials(run)
        page = write_overview(run, out, images, cache) if trials else write_report(FinishedRun(run, cache), out, images)
        more = typed_plugins(plugin)
        print(f"written: {page} ({page.stat().st_size / 2**20:.1f} MB); open it in a browser, it needs no network")
        if trials:
            print(f"next: temi report {typed(run / 'trial-000')}{more}, or another of them, to see its clusters")
            return
        print(f"beside it: {', '.join(f'{name}.csv' for name in LISTS)}")
        print(
            f"next: temi serve {typed(run)}{more}, to see images large and to correct; "
            f"or temi names {typed(run)} > names.csv"
        )


@commands.command(rich_help_panel=RESULTS)
def predict(
    run: Run,
    images: Annotated[str, typer.Argument(help="an image, a folder or any other source of `temi embed`, or a cache")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="FILE.parquet or FILE.csv; default: CSV to stdout", callback=on_this_machine),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="folder of the weights, where they are not from a hub")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    new: Annotated[bool, typer.Option("--new", help="of a cache that grew: the rows since RUN was trained")] = False,
    plugin: Plugins = None,
) -> None:
    """Assign new IMAGES to the clusters of RUN, and flag those unlike anything it was trained on."""
    with user_errors():
        from temi.cache.words import counted
        from temi.pipeline.plugins import load_plugins
        from temi.pipeline.results.predict import predict as run_predict

        if out is None:
            refuse_closed_output()
        load_plugins(plugin)
        counts = run_predict(run, images, out, backbone=backbone, device=device, new=new)
        unreadable = f", {counts.unreadable} unreadable" if counts.unreadable else ""
        print(
            f"{counted(counts.images, 'image')}, {counts.novel} unlike the training images{unreadable}",
            file=sys.stderr,
        )


@commands.command(rich_help_panel=RESULTS)
def export(
    run: Run,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="file; a folder for `lists`, a new one for what is many files", callback=on_this_machine
        ),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="csv, parquet, json, folders, datasets, lists, fiftyone, embedding-atlas, lance or onnx; "
            "default: by the suffix of --out",
        ),
    ] = None,
    link: Annotated[
        Link, typer.Option(help="how `folders` and `fiftyone` hold images; originals are never moved")
    ] = Link.symlink,
    images: Images = None,
    cache: Cache = None,
    plugin: Plugins = None,
) -> None:
    """Write the assignments of RUN for people and other tools: a table, lists, folders, data sets; or its model."""
    with user_errors():
        from temi.pipeline.plugins import load_plugins
        from temi.pipeline.registry import EXPORTS
        from temi.pipeline.results.finished import FinishedRun
        from temi.pipeline.results.formats import Wanted, format_of

        load_plugins(plugin)
        write = EXPORTS[format_of(out, format_)]
        print(write(FinishedRun(run, cache), out, Wanted(link.value, images)))


@commands.command(rich_help_panel=RESULTS)
def names(
    run: Run,
    table: Annotated[Path | None, typer.Argument(metavar="NAMES.csv", help="columns cluster and name")] = None,
    suggest: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="fill the printed table with words by CLIP, SigLIP or the like: id or folder"
        ),
    ] = None,
    words: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a word a line; default: the 1,000 classes of ImageNet")
    ] = None,
    images: Images = None,
    cache: Cache = None,
    plugin: Plugins = None,
) -> None:
    """Name the clusters of RUN; without NAMES.csv, print a table to fill in, with --suggest one that is filled."""
    with user_errors():
        from temi.cache.words import counted
        from temi.pipeline.errors import UserError
        from temi.pipeline.plugins import load_plugins
        from temi.pipeline.results.finished import FinishedRun
        from temi.pipeline.results.names import set_names
        from temi.pipeline.runs.mirror import shown

        load_plugins(plugin)
        if words is not None and suggest is None:
            raise UserError("--words needs --suggest MODEL, the model that chooses among them")
        if table is not None and suggest is not None:
            raise UserError("--suggest prints a table and NAMES.csv takes one in; give one of the two")
        finished = FinishedRun(run, cache)
        if table is not None:
            given = sum(map(bool, set_names(run, table, finished.clusters)))
            there = finished.clusters - len(finished.gone)
            print(f"{shown(run)}: {given} of {counted(there, 'cluster has', 'clusters have')} a name")
            print(f"next: temi report {typed(run)}")
            return
        found = {}
        if suggest is not None:
            from temi.pipeline.results.suggest import suggest_names

            found = {made.cluster: made for made in suggest_names(finished, suggest, words, images)}
        groups = finished.assignments.groupby("cluster")["confidence"]
        sizes, confidence = groups.size(), groups.mean()
        writer = csv.writer(sys.stdout)
        more = ["score", "runner_up", "runner_up_score"] if suggest else []
        writer.writerow(["cluster", "name", "images", "confidence", *more])
        gone = finished.gone
        for cluster, name in enumerate(finished.names):
            if cluster in gone:
                continue
            row = [cluster, name, sizes.get(cluster, 0), f"{confidence.get(cluster, 0):.2f}"]
            if made := found.get(cluster):
                row[1] = made.name
                row += [f"{made.score:.3f}", made.runner_up, f"{made.runner_up_score:.3f}"]
            writer.writerow(row)


@commands.command(rich_help_panel=RESULTS)
def serve(
    run: Run,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 0,
    images: Images = None,
    cache: Cache = None,
    backbone: Annotated[str | None, typer.Option(help="folder of the weights, where they are not from a hub")] = None,
    plugin: Plugins = None,
) -> None:
    """Show the page of RUN with a server behind it, on this machine only: every image large, corrections kept at once.

    Needs the extra `serve`.
    """
    with user_errors():
        from temi.pipeline.plugins import load_plugins
        from temi.pipeline.results.finished import FinishedRun
        from temi.pipeline.serve.server import serve as run_server

        load_plugins(plugin)
        run_server(FinishedRun(run, cache), port, images, backbone)


@commands.command("label-next", rich_help_panel=RESULTS)
def label_next(
    run: Run,
    count: Annotated[int | None, typer.Option(help="images to choose; default: 50, or all of fewer")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="FILE.csv; default: standard output", callback=file_ending(".csv"))
    ] = None,
    cache: Cache = None,
) -> None:
    """Choose the images of RUN whose labels would teach most: typical ones, a few per cluster, spread."""
    with user_errors():
        from temi.pipeline.results.finished import FinishedRun
        from temi.pipeline.results.lists import write_label_next

        write_label_next(FinishedRun(run, cache), count, out)


@commands.command(rich_help_panel=RESULTS)
def correct(
    run: Run,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="corrections, one JSON object a line; the report saves such")
    ] = None,
    tagged: Annotated[
        Path | None,
        typer.Option("--from", metavar="FIFTYONE.json", help="labels and tags that FiftyOne wrote, instead"),
    ] = None,
    who: Annotated[str, typer.Option(help="who says so; default: the user of this computer")] = "",
    cache: Cache = None,
) -> None:
    """Take the corrections in FILE into RUN: merges, splits, moves, names; all of them, or none if one does not fit.

    Report, predictions and exports respect them from then on.
    """
    with user_errors():
        from temi.cache.words import counted
        from temi.pipeline.errors import UserError
        from temi.pipeline.results.correct import correct as run_correct
        from temi.pipeline.results.correct import read_file
        from temi.pipeline.results.corrections_file import CORRECTIONS
        from temi.pipeline.results.fiftyone import Tagged, read_fiftyone
        from temi.pipeline.results.finished import FinishedRun

        if (file is None) == (tagged is None):
            raise UserError("give a FILE of corrections, or --from a file that FiftyOne wrote: one of the two")
        finished = FinishedRun(run, cache)
        told = read_fiftyone(finished, tagged) if tagged else Tagged(read_file(file) if file else [])
        if told.strangers:
            print(f"passed over, as no images of {run}: {counted(told.strangers, 'sample')} of {tagged}")
        done = run_correct(finished, told.entries, who)
        left_out = len(told.entries) - len(done)
        known = f"; {left_out} left out, which the run has from that very time" if left_out else ""
        print(f"{run / CORRECTIONS}: {counted(len(done), 'correction')} more{known}")
        print(f"next: temi report {typed(run)}, or temi export {typed(run)}")
