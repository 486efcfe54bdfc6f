"""Packages that only some users need: imported where they are used, named with the extra that brings them."""

from importlib import import_module
from typing import Any

from temi.pipeline.errors import UserError

DISTRIBUTION = "temi-clustering"


def import_extra(module: str, extra: str, purpose: str = "") -> Any:
    """The module `module`, which the optional dependencies `extra` of pyproject.toml bring.

    Raises
    ------
    UserError
        It is not installed: what needs it (`purpose`), and the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name or module
        needed = f"{purpose} needs {missing}, which is not installed" if purpose else f"{missing} is not installed"
        raise UserError(f"{needed}; {install(extra)}") from None


def install(extra: str) -> str:
    """The command that installs an extra of this package, also where it was installed from a clone."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
