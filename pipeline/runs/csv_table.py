"""A table of results as CSV that reads back as it was."""

import pandas as pd

from temi.cache.files import csv_bytes


def frame_csv(table: pd.DataFrame) -> bytes:
    """`table` without its index, in UTF-8; real numbers to four places."""
    rows = (
        [f"{value:.4f}" if isinstance(value, float) else value for value in row]
        for row in table.itertuples(index=False)
    )
    return csv_bytes([list(table.columns), *rows])
