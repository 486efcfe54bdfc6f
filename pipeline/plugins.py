"""A user's own file of Python: a backbone, an image source, an objective, a baseline, a start or an export.

The file is code. It runs only where a command line or a call names it, never because a cache or a run folder does.
"""

import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import temi
from temi.pipeline.errors import USER_ERRORS, UserError, in_a_line, kind_and_reason


@dataclass(frozen=True)
class Plugin:
    """A file that ran.

    Attributes
    ----------
    module
        What the file defines.
    path
        Where it lies, absolute; of one that came from another machine, its name.
    digest
        SHA-256 of its bytes, 64 hexadecimal digits.
    code
        Its bytes.
    """

    module: ModuleType
    path: Path
    digest: str
    code: bytes


_loaded: dict[tuple[Path, str], Plugin] = {}


def load_plugin(path: Path) -> Plugin:
    """Run the file `path` as a module of its own; what it registers stays registered in this process.

    The same bytes at the same path run once, so that naming a file twice registers nothing twice.

    Raises
    ------
    UserError
        The file is missing, cannot be read, is not Python, or raises.
    """
    path = Path(path).expanduser().resolve()
    return _load(path, _read(path))


def load_plugins(paths: Iterable[Path | str] | None) -> list[Plugin]:
    """`load_plugin` of each file that is named, if any is."""
    return [load_plugin(Path(path)) for path in paths or ()]


def load_text(name: str, code: bytes) -> Plugin:
    """`load_plugin` of a file that lies on another machine: its `name` and its bytes."""
    return _load(Path(name), code)


def _load(path: Path, code: bytes) -> Plugin:
    digest = hashlib.sha256(code).hexdigest()
    if (path, digest) not in _loaded:
        _loaded[path, digest] = Plugin(_run(path, code, digest), path, digest, code)
    return _loaded[path, digest]


def plugin_of(thing: object) -> Plugin | None:
    """The plugin that defines a function or class, if one does."""
    module = getattr(thing, "__module__", None)
    return next((plugin for plugin in _loaded.values() if plugin.module.__name__ == module), None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"plugin {path} does not exist; give an existing Python file") from None
    except OSError as error:
        raise UserError(f"plugin {path} cannot be read ({error.strerror}); give a Python file") from None


def _run(path: Path, code: bytes, digest: str) -> ModuleType:
    module = ModuleType(f"_temi_plugin_{path.stem}_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look a class's module up there
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UserError(f"plugin {path} cannot be loaded ({_reason(error, path)}); correct the file") from None
    return module


def _lines_in(error: BaseException, file: str) -> list[int | None]:
    """The lines of `file` that were running, the innermost last."""
    return [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]


def _reason(error: BaseException, path: Path) -> str:
    """Type, message and, where it is known, the line of the plugin that was running."""
    own = _lines_in(error, str(path))
    line = error.lineno if isinstance(error, SyntaxError) else own[-1] if own else None
    where = f"line {line}: " if line else ""
    return f"{where}{kind_and_reason(error)}"


@contextmanager
def blame(what: str, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, `function` runs: an error in one of the user's own is a UserError that says where, such as ``the
    objective 'x' failed at x.py:12: KeyError: 'sharpness'``.

    One of this package's own is a fault of the package, and stays as it is.
    """
    try:
        yield
    except USER_ERRORS:
        raise
    except (Exception, SystemExit) as error:
        if str(getattr(function, "__module__", "")).startswith(f"{temi.__name__}."):
            raise
        raise UserError(f"{what} failed{_place(error, function)}: {kind_and_reason(error)}") from error


def fault_of_plugin(error: Exception) -> UserError | None:
    """What to tell of an error that code of a plugin raised, here or in a process that decodes images, such as ``the
    plugin x.py failed at line 12: KeyError: 'a'``; None where no plugin was running.
    """
    trace = "".join(traceback.format_exception(error))
    for plugin in _loaded.values():
        # On a node of a cluster the file has its name alone.
        name = f'File "(?:{re.escape(str(plugin.path))}|{re.escape(plugin.path.name)})", line '
        lines = re.findall(rf"{name}(\d+)", trace)
        if lines:
            told_elsewhere = re.search(name, str(error))  # a process passes its whole trace on as the message
            reason = in_a_line(_behind_frames(trace)) if told_elsewhere else kind_and_reason(error)
            return UserError(f"the plugin {plugin.path} failed at line {lines[-1]}: {reason}; correct the file")
    return None


def _behind_frames(trace: str) -> str:
    """What stands behind the last frame of a trace, whose lines are indented: the error and what it says."""
    lines = trace.splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith(" ")]
    return "\n".join(lines[max(frames) + 1 :])


def _place(error: BaseException, function: Callable[..., Any]) -> str:
    """The line of the function's file that was running; the function itself where none was."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return ""
    own = _lines_in(error, code.co_filename)
    return f" at {code.co_filename}:{own[-1] if own else code.co_firstlineno}"
