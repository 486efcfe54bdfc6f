"""How far a long job is: a bar on a terminal, a plain line every few seconds anywhere else."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 5.0

_shown = ContextVar("shown", default=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing inside shows its progress."""
    token = _shown.set(False)
    try:
        yield
    finally:
        _shown.reset(token)


def say(line: str) -> None:
    """Print a line to stderr, unless it is `quiet`."""
    if _shown.get():
        _write(line, sys.stderr)


def _write(line: str, stream: TextIO) -> None:
    """A line at once. Who closed the stream, as `2>&1 | head`, has seen enough, and the work goes on."""
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        send_nowhere(stream)


def send_nowhere(stream: TextIO) -> None:
    """What is still to be written to `stream` goes nowhere: it cannot be written."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Progress:
    """Counts `unit`s done out of `total`, with rate and remaining time, on `stream` (default: stderr).

    Examples
    --------
    >>> with Progress("embed", total=100, unit="img") as progress:
    ...     progress.advance(10, note="shard 1/4")
    """

    def __init__(self, description: str, total: int, unit: str, *, stream: TextIO | None = None) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self._shown = 0
        self.note = ""
        self._stream = sys.stderr if stream is None else stream
        self._started = self._printed = time.monotonic()
        self._quiet = not _shown.get()
        self._bar = _bar(self._stream) if self._stream.isatty() and not self._quiet else None

    def __enter__(self) -> Self:
        self._started = self._printed = time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, rate="", note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.done > self._shown and not self._quiet:
            self._print()

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units; `note` stands behind the figures until the next one."""
        self.done += n
        self.note = note or self.note
        if self._bar is not None:
            self._bar.update(self._task, advance=n, rate=f"{_figure(self.rate)} {self.unit}/s", note=self.note)
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES and not self._quiet:
            self._print()

    def line(self) -> str:
        """The state as one plain line."""
        left = (self.total - self.done) / self.rate if self.done else float("inf")
        when = f"ETA {_clock(left)}" if self.done < self.total else f"in {_clock(time.monotonic() - self._started)}"
        parts = [f"{self.done}/{self.total} {self.unit}", f"{_figure(self.rate)} {self.unit}/s", when, self.note]
        return f"{self.description}: " + ", ".join(part for part in parts if part)

    def _print(self) -> None:
        self._printed, self._shown = time.monotonic(), self.done
        _write(self.line(), self._stream)


def _bar(stream: TextIO) -> RichProgress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    times = (TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    return RichProgress(*columns, *times, console=Console(file=stream))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
