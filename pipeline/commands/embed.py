"""`temi embed`: images into a cache."""

from pathlib import Path
from typing import Annotated

import typer

from temi.pipeline.commands.console import failures, known, size, typed, user_errors
from temi.pipeline.commands.options import ConfigFile, OnCluster, Overrides, Overwrite, Plugins, here_or_in_a_bucket

commands = typer.Typer()


@commands.command()
def embed(
    source: Annotated[str, typer.Argument(help="folder, tar, Parquet or list of images, digits, cifar10, hf:ID")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="CACHE",
            help="folder of the cache, or s3://BUCKET/NAME; resumed if it is there",
            callback=here_or_in_a_bucket,
        ),
    ],
    root: Annotated[Path | None, typer.Option(help="where torchvision data sets are, or are downloaded to")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="only every N-th shard, from the I-th (0-based); torchrun says which by itself"
        ),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(metavar="names|content", help="content: notice where the bytes of an image changed"),
    ] = None,
    on: OnCluster = "",
    plugin: Plugins = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Stage one: run a frozen backbone once over SOURCE and its augmented views, into an embedding cache."""
    with user_errors():
        from temi.cache.bucket import bucket_url
        from temi.pipeline.config import load_config
        from temi.pipeline.errors import UserError
        from temi.pipeline.network import check_backbone_is_here
        from temi.pipeline.plugins import load_plugins

        plugins = load_plugins(plugin)
        settings = load_config(config, [*(set_ or ()), *([f"embed.digest={digest}"] if digest else [])]).embed
        part = _parse_shard(shard, overwrite, on)
        if not (plugins or on):  # a plugin may register any name; nodes look for themselves
            try:
                check_backbone_is_here(settings.backbone)
            except UserError:
                from temi.pipeline.images import open_source

                open_source(source, root=root, max_pixels=settings.max_pixels)  # a mistake in SOURCE is told first
                raise
        from temi.pipeline.encode.embed import embed as run_embed  # brings torch: not before the hub is known to answer

        cache = run_embed(source, out, settings, root=root, shard=part, overwrite=overwrite, on=on, plugins=plugins)
        place = bucket_url(out) or out
        if cache is None:
            print(f"{place}: this worker's shards are done; the cache is complete when the other workers' are")
            return
        print(f"{place}: {known(cache)}")
        print(f"{place}: {size(cache, 'image')}{failures(cache)}")
        print(f"next: temi train-heads {typed(place)} --clusters C --out RUN")


def _parse_shard(text: str | None, overwrite: bool, on: str) -> tuple[int, int]:
    """I and N of ``--shard I/N``; without it, those of torchrun."""
    from temi.pipeline.device import torchrun_rank
    from temi.pipeline.errors import UserError

    if on and (text is not None or torchrun_rank()[1] > 1):
        raise UserError("--on deals all shards out to the nodes; leave out --shard, and torchrun")
    if text is None:
        if overwrite and torchrun_rank()[1] > 1:  # each process would delete what the others have begun
            raise UserError("--overwrite does not go with torchrun; delete the cache first, then start torchrun")
        return torchrun_rank()
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard {text!r} is not of the form I/N with 0 <= I < N, e.g. --shard 0/4")
    return int(index), int(count)
