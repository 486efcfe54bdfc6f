"""A table of results as CSV that reads back as it was."""

from collections.abc import Mapping, Sequence

from temi.cache.files import csv_bytes


def table_csv(columns: Mapping[str, Sequence[object]]) -> bytes:
    """Columns by name, in UTF-8; real numbers to four places."""
    return csv_bytes([list(columns)]) + lines_csv(columns)


def lines_csv(columns: Mapping[str, Sequence[object]]) -> bytes:
    """The same without their names."""
    plain = ([f"{value:.4f}" if isinstance(value, float) else value for value in values] for values in columns.values())
    return csv_bytes(zip(*plain, strict=True))
