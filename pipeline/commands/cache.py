"""`temi cache`: look at, check, convert, merge and join caches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from temi.pipeline.commands.console import failures, size, user_errors
from temi.pipeline.commands.options import Overwrite, on_this_machine
from temi.pipeline.commands.tables import print_wide

if TYPE_CHECKING:
    from temi.cache.kept import Kept

commands = typer.Typer(no_args_is_help=True, help="Look at, check, convert, merge and join embedding caches.")

SHORT = 24  # characters of a setting that is printed with what it made

CacheFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="folder written by `temi embed`")]
CachePlace = Annotated[
    Path, typer.Argument(metavar="CACHE", help="written by `temi embed`: a folder, or s3://BUCKET/NAME")
]
NewCache = Annotated[
    Path, typer.Option("--out", metavar="CACHE", help="folder of the new cache", callback=on_this_machine)
]


@commands.command("info")
def cache_info(
    folder: CachePlace, json_: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False
) -> None:
    """What is in CACHE and what it was made from, also if it is unfinished."""
    with user_errors():
        import json
        from dataclasses import asdict

        from temi.cache.info import summarize

        summary = summarize(folder)
        if json_:
            print(json.dumps(summary.to_json(), indent=1, ensure_ascii=False))
            return
        table = Table(show_header=False)
        shown = vars(summary) | {"kept": "\n".join(map(_made, summary.kept)) or "nothing"}
        for name, value in (shown | asdict(shown.pop("fingerprint"))).items():
            table.add_row(name, f"{value:,}" if isinstance(value, int) else escape(str(value)))
        print_wide(table)


def _made(kept: "Kept") -> str:
    """One line of what is kept: its name, its size, and the short settings that made it."""
    short = [
        f"{name}={value}" for name, value in kept.recipe.items() if name != "embeddings" and len(str(value)) <= SHORT
    ]
    settings = short if kept.recipe else ["unreadable"]  # what can be read says what made it, if at length
    return " ".join([kept.name, f"{kept.nbytes / 1e6:,.1f} MB", *settings, f"({kept.path.name})"])


@commands.command("prune")
def cache_prune(
    folder: CachePlace,
    only: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="drop only this: neighbors, copies, scaling, start, heads, familiar or baseline"
        ),
    ] = "",
) -> None:
    """Drop what was computed from CACHE and is kept in it (see `temi cache info`); the next run makes it again."""
    with user_errors():
        from temi.cache.bucket import bucket_url
        from temi.cache.info import prune
        from temi.cache.words import counted

        dropped, place = prune(folder, only), bucket_url(folder) or folder
        print(f"{place}: {counted(len(dropped), 'file')} dropped, {sum(kept.nbytes for kept in dropped) / 1e6:,.1f} MB")


@commands.command("verify")
def cache_verify(folder: CachePlace) -> None:
    """Re-read every byte of CACHE and name everything that is wrong; exit code 1 if anything is."""
    with user_errors():
        from temi.cache import EmbeddingCache
        from temi.cache.bucket import bucket_url
        from temi.cache.info import summarize
        from temi.cache.remote import verify_url
        from temi.cache.verify import verify
        from temi.cache.words import counted

        url, rows = bucket_url(folder), summarize(folder).rows  # what is no cache is said here
        with _rows_done("verify") as progress:
            problems = verify_url(url, progress) if url else verify(folder, progress)
        for problem in problems:
            print(problem)
        place = url or folder
        if problems:
            print(f"temi: {place} has {counted(len(problems), 'problem')}", file=sys.stderr)
            raise typer.Exit(1)
        print(f"{place}: {counted(rows, 'row')}, every byte as written, digest {EmbeddingCache.open(folder).digest}")


@commands.command("export")
def cache_export(
    folder: CacheFolder,
    out: Annotated[
        Path,
        typer.Argument(help="FILE.parquet, FILE.safetensors, or a folder for .npy files", callback=on_this_machine),
    ],
    neighbors: Annotated[str, typer.Option(metavar="KEY", help="neighbor graph to put into the Parquet file")] = "",
) -> None:
    """Write CACHE in a format of other programs; `temi cache import` makes the same cache of it unless it grew."""
    with user_errors():
        from temi.cache import EmbeddingCache
        from temi.cache.convert.export import export_cache
        from temi.pipeline.progress import say

        cache = EmbeddingCache.open(folder)
        with _rows_done("export") as progress:
            export_cache(cache, out, neighbors=neighbors, progress=progress)
        if cache.manifest.earlier:
            say(f"note: {folder} grew, and {out} does not tell its parts apart: `temi cache import` refuses it")
        print(f"{out}: {size(cache, 'row')}")


@commands.command("import")
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


@commands.command("merge")
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


@commands.command("join")
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
    print(f"{out}: {size(cache, 'row')}{failures(cache)}")


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
