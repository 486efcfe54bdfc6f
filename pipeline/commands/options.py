"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

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
OnCluster = Annotated[
    str,
    typer.Option("--on", metavar="ray[:ADDRESS]", help="have the nodes of a Ray cluster do it; needs the extra `ray`"),
]
START = "Start here"
RESULTS = "Use the result"
