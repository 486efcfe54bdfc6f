"""A table of results as CSV that reads back as it was."""

from collections.abc import Iterable, Mapping, Sequence

from temi.cache.files import csv_bytes


def table_csv(columns: Mapping[str, Sequence[object]]) -> bytes:
    """Columns by name, in UTF-8; real numbers to four places."""
    return csv_bytes([list(columns)]) + rows_csv(zip(*columns.values(), strict=True))


def rows_csv(rows: Iterable[Sequence[object]]) -> bytes:
    """Lines of such a table."""
    return csv_bytes([f"{value:.4f}" if isinstance(value, float) else value for value in row] for row in rows)
