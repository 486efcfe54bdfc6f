"""How commands end when the user, not the program, made the mistake."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from pipeline.errors import USER_ERRORS


@contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake is one sentence on stderr and exit code 2; Ctrl-C says how to go on."""
    try:
        yield
    except USER_ERRORS as error:
        print(f"temi: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("temi: stopped; run the same command again to go on from here", file=sys.stderr)
        raise typer.Exit(130) from None
