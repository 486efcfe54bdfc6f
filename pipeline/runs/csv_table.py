"""A table of results as CSV that reads back as it was."""

from collections.abc import Iterable, Sequence

import pandas as pd

from temi.cache.files import csv_bytes


def frame_csv(table: pd.DataFrame) -> bytes:
    """`table` without its index, in UTF-8; real numbers to four places."""
    return csv_bytes([list(table.columns)]) + rows_csv(table.itertuples(index=False))


def rows_csv(rows: Iterable[Sequence[object]]) -> bytes:
    """Lines of such a table."""
    return csv_bytes([f"{value:.4f}" if isinstance(value, float) else value for value in row] for row in rows)
