"""The command line: parses, calls, prints. Console script `temi`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from temi.pipeline.commands.console import user_errors
from temi.pipeline.commands.results import START, report, results
from temi.pipeline.errors import UserError

if TYPE_CHECKING:
    from temi.pipeline.start.count import ClusterCount

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Cluster images without labels: embed once, train clustering heads in seconds, look at the result.",
)

app.add_typer(results)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings; see configs/default.toml")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="one setting; may be repeated")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="destroy what --out holds; the default is to resume it")]


@app.command()
def embed(
    source: Annotated[str, typer.Argument(help="folder, tar, Parquet or list of images, digits, cifar10, hf:ID")],
    out: Annotated[Path, typer.Option("--out", metavar="CACHE", help="folder of the cache; resumed if it is there")],
    root: Annotated[Path | None, typer.Option(help="where torchvision data sets are, or are downloaded to")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="only every N-th shard, from the I-th (0-based); torchrun says which by itself"
        ),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(metavar="names|content", help="content: refuse to go on where the bytes of an image changed"),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Python file of yours that registers a backbone or a source; it is run"),
    ] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Stage one: run a frozen backbone once over SOURCE and its augmented views, into an embedding cache."""
    with user_errors():
        from temi.pipeline.config import load_config
        from temi.pipeline.encode.embed import embed as run_embed
        from temi.pipeline.plugins import load_plugin

        for path in plugin or ():
            load_plugin(path)
        settings = load_config(config, [*(set_ or ()), *([f"embed.digest={digest}"] if digest else [])]).embed
        cache = run_embed(source, out, settings, root=root, shard=_parse_shard(shard, overwrite), overwrite=overwrite)
        if cache is None:
            print(f"{out}: this worker's shards are done; the cache is complete when the other workers' are")
            return
        print(f"{out}: {cache.rows:,} images x {cache.dim}, {cache.views} views each{_failures(cache)}")
        print(f"next: temi train-heads {out} --clusters C --out RUN")


def _parse_shard(text: str | None, overwrite: bool) -> tuple[int, int]:
    """I and N of ``--shard I/N``; without it, those of torchrun."""
    from temi.pipeline.device import torchrun_rank

    if text is None:
        if overwrite and torchrun_rank()[1] > 1:  # each process would delete what the others have begun
            raise UserError("--overwrite does not go with torchrun; delete the cache first, then start torchrun")
        return torchrun_rank()
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard {text!r} is not of the form I/N with 0 <= I < N, e.g. --shard 0/4")
    return int(index), int(count)


def _failures(cache: Any) -> str:
    broken = int((~cache.ok).sum())
    return f", {broken} unreadable (see {cache.folder / 'failures.csv'})" if broken else ""


@app.command()
def train_heads(
    cache: Annotated[Path, typer.Argument(help="folder written by `temi embed`")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="run folder; an interrupted run there is resumed")],
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
    config: ConfigFile = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Stage two: train clustering heads on a cache. No label is read."""
    with user_errors():
        from temi.cache import EmbeddingCache
        from temi.pipeline.config import load_config
        from temi.pipeline.heads.processes import follow, join
        from temi.pipeline.runs.run_folder import read_json, write_json
        from temi.pipeline.runs.train import train_heads

        if join().rank > 0:
            follow()
            return
        overrides, axes, count = list(set_ or ()), list(grid or ()), None
        if clusters is not None:
            numbers, count = _count_clusters(clusters, cache, out, config, overrides)
            setting = f"heads.clusters={','.join(map(str, numbers))}"
            (axes if len(numbers) > 1 else overrides).append(setting)
        if trials or axes:
            _train_trials(cache, out, trials, axes, config, overrides, overwrite)
        else:
            train_heads(EmbeddingCache.open(cache), load_config(config, overrides), out, overwrite=overwrite)
        if count is not None:
            write_json(out / "clusters.json", count.summary())
        join().dismiss()
        if trials or axes:
            return
        summary = read_json(out / "training.json")
        _print_training(summary)
        print(f"assignments: {out / 'assignments.csv'}\nnext: temi evaluate {out}")


def _count_clusters(
    text: str, cache: Path, out: Path, config: Path | None, overrides: list[str]
) -> tuple[list[int], "ClusterCount | None"]:
    """The numbers that `--clusters` names, or the estimate it asks for, printed with its curve."""
    from temi.cache import EmbeddingCache
    from temi.pipeline.config import load_config
    from temi.pipeline.device import pick_device
    from temi.pipeline.heads.batches import training_rows
    from temi.pipeline.start.count import estimate_clusters, parse_clusters

    asked = parse_clusters(text)
    if isinstance(asked, list):
        return asked, None
    settings, opened = load_config(config, overrides), EmbeddingCache.open(cache)
    rows, device = training_rows(opened, settings.train.split), pick_device(settings.train.device)
    count = estimate_clusters(opened, rows, settings.start, device, out / "neighbors", *asked)
    curve = [{"method": str(score.clusters), "kind": "clustering", **vars(score)} for score in count.curve]
    _print_table("numbers of clusters, by scores that need no label", curve)
    print(f"{count.clusters} clusters: {count.reason}")
    return [count.clusters], count


def _train_trials(
    cache: Path, out: Path, file: Path | None, grid: list[str], config: Path | None, overrides: list[str], destroy: bool
) -> None:
    from temi.cache import EmbeddingCache
    from temi.pipeline.commands.console import merge_tree
    from temi.pipeline.runs.label_free import choose_trial
    from temi.pipeline.runs.run_folder import read_json
    from temi.pipeline.runs.trials import MERGES, plan_trials, train_trials, trial_name

    trials = train_trials(
        EmbeddingCache.open(cache), plan_trials(file, grid, config, overrides), out, overwrite=destroy
    )
    trained = [trial for trial in trials if "stopped" not in trial]
    rows = [
        trial | {"method": trial_name(trial), "kind": "clustering", "loss": min(trial["head_loss"])}
        for trial in trained
    ]
    if rows:
        _print_table(f"{len(trials)} trials, by scores that need no label", rows)
        chosen = choose_trial(trained)
        print(f"most trustworthy without labels: {trial_name(chosen)}")
    for trial in trials:
        if "stopped" in trial:
            print(f"note: {trial_name(trial)}: {trial['stopped']}")
    if not trained:
        raise UserError(f"none of the {len(trials)} trials in {out} could be trained; see the notes above")
    for tree in read_json(out / MERGES):
        _print(merge_tree(tree))
    print(f"written: {out / 'trials.json'}\nnext: temi evaluate {out}, temi report {out}")


def _print_training(summary: dict[str, Any]) -> None:
    empty = summary["clusters"] - summary["used_clusters"]
    print(
        f"{summary['images']:,} images, {summary['steps']:,} steps in {summary['seconds']:.1f} s; "
        f"{summary['used_clusters']} of {summary['clusters']} clusters used, sizes {summary['smallest_cluster']} to "
        f"{summary['largest_cluster']}, mean confidence {summary['mean_confidence']:.2f}"
    )
    if empty:
        print(f"note: {empty} of the clusters asked for are empty")
    if summary["skipped_steps"]:
        print(f"note: {summary['skipped_steps']} steps with a non-finite loss or gradient were skipped")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="folder written by `temi train-heads`, of one run or of trials")],
    cache: Annotated[Path | None, typer.Argument(help="a held-out cache, or the training cache if it moved")] = None,
    baselines: Annotated[
        str,
        typer.Option(
            metavar="all|none|NAME,...",
            help="kmeans, spherical, umap, ward, hdbscan, leiden, turtle, scan, published, seed-recipe",
        ),
    ] = "kmeans",
) -> None:
    """Score a run beside baselines and the labeled ceilings; without labels, by label-free scores."""
    with user_errors():
        from temi.cache import EmbeddingCache
        from temi.pipeline.evaluate.recipes import parse_baselines
        from temi.pipeline.evaluate.tables import evaluate_run
        from temi.pipeline.runs.trials import evaluate_trials, is_trials

        other, chosen = EmbeddingCache.open(cache) if cache else None, parse_baselines(baselines)
        if is_trials(run):
            for part in evaluate_trials(run, other, chosen):
                _print_table(f"{part['name']} ({part['images']:,} images)", part["rows"])
            print(f"written: {run / 'result.json'}")
            return
        result = evaluate_run(run, other, chosen)
        for part in result["parts"]:
            _print_table(f"{part['name']} ({part['images']:,} images)", part["rows"])
        scores = result["training"]
        print(
            f"label-free: loss {min(scores['head_loss']):.4f}, neighbor consistency "
            f"{_figure(scores['neighbor_consistency'])}, head agreement {_figure(scores['head_agreement'])}"
        )
        print(f"written: {run / 'result.json'}\nnext: temi report {run}")


@app.command(rich_help_panel=START)
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="holds the cache and the run")] = Path("demo"),
) -> None:
    """Cluster scikit-learn's 1,797 digits, from images to a report: nothing to download, a few minutes on a CPU."""
    from temi.pipeline.evaluate.recipes import CONFIGS

    embed("digits", out / "cache", config=CONFIGS / "demo.toml")
    train_heads(out / "cache", out / "run", config=CONFIGS / "demo.toml")
    evaluate(out / "run")
    report(out / "run")


_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "acc": ("ACC", lambda value: f"{100 * value:.1f}"),
    "nmi": ("NMI", lambda value: f"{100 * value:.1f}"),
    "ami": ("AMI", lambda value: f"{100 * value:.1f}"),
    "ari": ("ARI", lambda value: f"{100 * value:.1f}"),
    "purity": ("purity", lambda value: f"{100 * value:.1f}"),
    "loss": ("loss", lambda value: f"{value:.4f}"),
    "neighbor_consistency": ("neighbors", lambda value: _figure(value)),
    "head_agreement": ("heads agree", lambda value: _figure(value)),
    "stability": ("stable", lambda value: _figure(value)),
    "linear_accuracy": ("linear", lambda value: _figure(value)),
    "mean_confidence": ("confidence", lambda value: _figure(value)),
    "used_clusters": ("used", str),
    "effective_clusters": ("exp(H)", lambda value: f"{value:.1f}"),
    "smallest_cluster": ("min size", str),
    "largest_cluster": ("max size", str),
    "silhouette": ("silhouette", lambda value: _figure(value)),
    "modularity": ("modularity", lambda value: _figure(value)),
    "seconds": ("seconds", lambda value: f"{value:.1f}"),
}


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    columns = {key: column for key, column in _COLUMNS.items() if any(key in row for row in rows)}
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading, _ in columns.values():
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [show(row[key]) if key in row else "" for key, (_, show) in columns.items()]
        table.add_row(row["method"], *cells, style="dim" if row["kind"] == "ceiling" else "")
    _print(table)


def _print(shown: Table | Tree) -> None:
    # A log or a pipe has no width: never wrap a table there.
    Console(width=None if sys.stdout.isatty() else 120).print(shown)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


cache_app = typer.Typer(no_args_is_help=True, help="Look at, check, convert, merge and join embedding caches.")
app.add_typer(cache_app, name="cache")

CacheFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="folder written by `temi embed`")]
NewCache = Annotated[Path, typer.Option("--out", metavar="CACHE", help="folder of the new cache")]


@cache_app.command("info")
def cache_info(
    folder: CacheFolder, json_: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False
) -> None:
    """What is in CACHE and what it was made from, also if it is unfinished."""
    with user_errors():
        import json

        from temi.cache.info import summarize

        summary = summarize(folder)
        if json_:
            print(json.dumps(summary, indent=1, ensure_ascii=False))
            return
        table = Table(show_header=False)
        for name, value in (summary | summary.pop("fingerprint")).items():
            table.add_row(name, f"{value:,}" if isinstance(value, int) else escape(str(value)))
        _print(table)


@cache_app.command("verify")
def cache_verify(folder: CacheFolder) -> None:
    """Re-read every byte of CACHE and name everything that is wrong; exit code 1 if anything is."""
    with user_errors():
        from temi.cache import EmbeddingCache, Manifest
        from temi.cache.verify import verify

        rows = Manifest.read(folder).rows
        with _rows_done("verify") as progress:
            problems = verify(folder, progress)
        for problem in problems:
            print(problem)
        if problems:
            print(f"temi: {folder} has {len(problems)} problem{'s' * (len(problems) > 1)}", file=sys.stderr)
            raise typer.Exit(1)
        print(f"{folder}: {rows:,} rows, every byte as written, digest {EmbeddingCache.open(folder).digest}")


@cache_app.command("export")
def cache_export(
    folder: CacheFolder,
    out: Annotated[Path, typer.Argument(help="FILE.parquet, FILE.safetensors, or a folder for .npy files")],
    neighbors: Annotated[str, typer.Option(metavar="KEY", help="neighbor graph to put into the Parquet file")] = "",
) -> None:
    """Write CACHE in a format of other programs; `temi cache import` makes the same cache of it again."""
    with user_errors():
        from temi.cache import EmbeddingCache
        from temi.cache.convert.export import export_cache

        cache = EmbeddingCache.open(folder)
        with _rows_done("export") as progress:
            export_cache(cache, out, neighbors=neighbors, progress=progress)
        print(f"{out}: {cache.rows:,} rows x {cache.dim}, {cache.views} views each")


@cache_app.command("import")
def cache_import(
    source: Annotated[Path, typer.Argument(help="exported cache, or .npy, .parquet, .safetensors made elsewhere")],
    out: NewCache,
    keys: Annotated[Path | None, typer.Option(help="text file of one image name per line")] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy file of one class number or name per image")] = None,
    backbone: Annotated[str, typer.Option(help="what made the embeddings, for the record")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Make a cache of SOURCE: an exported cache, or embeddings made elsewhere."""
    with user_errors():
        from temi.cache.convert.importing import import_embeddings

        with _rows_done("import") as progress:
            cache = import_embeddings(
                source, out, keys=keys, labels=labels, backbone=backbone, overwrite=overwrite, progress=progress
            )
        _print_made(out, cache)


@cache_app.command("merge")
def cache_merge(
    folders: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="caches of different images")],
    out: NewCache,
    overwrite: Overwrite = False,
) -> None:
    """Merge caches of different images, made with the same settings, into one."""
    with user_errors():
        from temi.cache.convert.merge import merge_caches

        with _rows_done("merge") as progress:
            cache = merge_caches(folders, out, overwrite=overwrite, progress=progress)
        _print_made(out, cache)


@cache_app.command("join")
def cache_join(
    folders: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="caches of the same images")],
    out: NewCache,
    overwrite: Overwrite = False,
) -> None:
    """Join caches of the same images, made with different encoders, into one: heads then read all spaces at once."""
    with user_errors():
        from temi.cache.convert.join import join_caches

        with _rows_done("join") as progress:
            cache = join_caches(folders, out, overwrite=overwrite, progress=progress)
        _print_made(out, cache)


def _print_made(out: Path, cache: Any) -> None:
    print(f"{out}: {cache.rows:,} rows x {cache.dim}, {cache.views} views each{_failures(cache)}")


@contextmanager
def _rows_done(description: str) -> Iterator[Callable[[Any, int], None]]:
    """A callback for `cache` that shows progress once it knows how many rows there are."""
    from temi.pipeline.progress import Progress

    shown: list[Progress] = []
    with ExitStack() as stack:

        def advance(shard: Any, rows: int) -> None:
            if not shown:
                shown.append(stack.enter_context(Progress(description, rows, "row")))
            shown[0].advance(shard.rows)

        yield advance


if __name__ == "__main__":
    app()
