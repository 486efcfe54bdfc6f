"""Names that a person gives to clusters; kept in the run folder, shown wherever a cluster is."""

import csv
import io
import json
import unicodedata
from pathlib import Path

from temi.cache.files import os_errors, write_atomic
from temi.pipeline.errors import UserError

NAMES = "names.json"
MAX_LENGTH = 120  # characters; a name is a heading and part of a folder's name
COLUMNS = ["cluster", "name"]


def read_names(run: Path, clusters: int) -> list[str]:
    """Name of each of the `clusters` clusters of `run`; "" where none was given."""
    path = run / NAMES
    names = [""] * clusters
    if not path.exists():
        return names
    try:
        for cluster, name in json.loads(path.read_text(encoding="utf-8")).items():
            names[int(cluster)] = _checked(name, path)
    except (ValueError, AttributeError, IndexError, TypeError, OSError):
        raise UserError(f"{path} is damaged or of another run; delete it and run `temi names` again") from None
    return names


def set_names(run: Path, table: Path, clusters: int) -> list[str]:
    """Take the names in the CSV file `table` (columns cluster and name, others are ignored) into `run`.

    Clusters that the file leaves out keep their names; an empty name takes one away.

    Raises
    ------
    UserError
        The file is not such a table, or a cluster in it does not exist or occurs twice.
    """
    names = read_names(run, clusters)
    for cluster, name in _read_table(table, clusters).items():
        names[cluster] = name
    given = {str(cluster): name for cluster, name in enumerate(names) if name}
    write_atomic(run / NAMES, (json.dumps(given, indent=1, ensure_ascii=False) + "\n").encode())
    return names


def display_name(cluster: int, names: list[str]) -> str:
    """What a person reads: the name, or the number where there is none."""
    return names[cluster] or f"cluster {cluster}"


def _read_table(path: Path, clusters: int) -> dict[int, str]:
    try:
        with os_errors(path, "read"):
            text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark first
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as CSV in UTF-8") from None
    reader = csv.DictReader(io.StringIO(text))
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise UserError(f"{path} needs a first line with the columns cluster and name; `temi names RUN` prints one")
    found: dict[int, str] = {}
    for row in reader:
        where = f"line {reader.line_num} of {path}"
        cluster = _cluster(row["cluster"], clusters, where)
        if cluster in found:
            raise UserError(f"{where} names cluster {cluster} again; keep one line per cluster")
        found[cluster] = _checked((row["name"] or "").strip(), where)
    return found


def _cluster(text: str | None, clusters: int, where: str) -> int:
    if text is None or not text.strip().isascii() or not text.strip().isdigit() or int(text) >= clusters:
        raise UserError(f"{where}: {text!r} is not a cluster of this run; they are 0 to {clusters - 1}")
    return int(text)


def _checked(name: object, where: object) -> str:
    if not isinstance(name, str) or len(name) > MAX_LENGTH:
        raise UserError(f"{where}: a name has at most {MAX_LENGTH} characters; shorten it")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise UserError(f"{where}: {name!r} holds a line break or control character; write the name in one line")
    return name
