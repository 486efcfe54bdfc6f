"""Tables on the terminal: one row a method or a trial, one column a score."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

if TYPE_CHECKING:
    from temi.pipeline.runs.records import ScoreRow

BARS = "▁▂▃▄▅▆▇█"
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "acc": ("ACC", lambda value: f"{100 * value:.1f}"),
    "nmi": ("NMI", lambda value: f"{100 * value:.1f}"),
    "ami": ("AMI", lambda value: f"{100 * value:.1f}"),
    "ari": ("ARI", lambda value: f"{100 * value:.1f}"),
    "purity": ("purity", lambda value: f"{100 * value:.1f}"),
    "used_clusters": ("used", str),
    "effective_clusters": ("exp(H)", lambda value: f"{value:.1f}"),
    "smallest_cluster": ("min size", str),
    "largest_cluster": ("max size", str),
    "seconds": ("seconds", lambda value: f"{value:.1f}"),
}


def print_table(title: str, rows: Sequence["ScoreRow"]) -> None:
    """A row a method; scores that none of them has are no column."""
    columns = {key: column for key, column in _COLUMNS.items() if any(getattr(row, key) is not None for row in rows)}
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading, _ in columns.values():
        table.add_column(heading, justify="right")
    for row in rows:
        values = [(getattr(row, key), show) for key, (_, show) in columns.items()]
        cells = ["" if value is None else show(value) for value, show in values]
        table.add_row(row.method, *cells, style="dim" if row.kind == "ceiling" else "")
    print_wide(table)


def print_curves(along: str, points: Sequence[Mapping[str, float]]) -> None:
    """Every score of `points` as a line of bars, one bar a point, and where it is highest."""
    print(f"{len(points)} numbers of {along} tried, {points[0][along]} to {points[-1][along]}; a bar for each:")
    for name in points[0]:
        if name != along:
            best = max(points, key=lambda point: point[name])
            print(f"{name:<12}{bars([point[name] for point in points])}  highest {best[name]:.3f} at {best[along]}")


def bars(values: Sequence[float]) -> str:
    """One mark for each value, as high as it stands between the lowest and the highest."""
    low, span = min(values), (max(values) - min(values)) or 1.0
    marks = BARS if "utf" in (sys.stdout.encoding or "").lower() else "12345678"
    return "".join(marks[round((value - low) / span * (len(marks) - 1))] for value in values)


def print_choices(title: str, rows: list[dict[str, str]]) -> None:
    """A table of 80 columns at most: settings wrap, figures do not. Columns that are empty are left out."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    headings = [heading for heading in rows[0] if any(row[heading] for row in rows)]
    for heading in headings:
        wraps = heading == "settings"
        table.add_column(
            heading, no_wrap=not wraps, min_width=24 if wraps else None, justify="left" if wraps else "right"
        )
    for row in rows:
        table.add_row(*(row[heading] for heading in headings), style="bold" if row[""] else "")
    Console(width=min(80, Console().width) if sys.stdout.isatty() else 80).print(table)


def print_wide(shown: Table | Tree) -> None:
    # A log or a pipe has no width: never wrap a table there.
    Console(width=None if sys.stdout.isatty() else 120).print(shown)


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
