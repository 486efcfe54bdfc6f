"""Names that a person gives to clusters: entries of the run's corrections, shown wherever a cluster is."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from temi.cache.files import os_errors
from temi.pipeline.errors import UserError
from temi.pipeline.results.corrections import MAX_LENGTH, REMOVED, Rename, replay_clusters, signed, visible_name
from temi.pipeline.results.corrections_file import append_corrections, correction_lock, read_corrections

NAMES = "names.json"
COLUMNS = ["cluster", "name"]
HEADING = re.compile("cluster (0|[1-9][0-9]*)|removed")  # what `display_name` says where there is no name
TAKEN = re.compile(HEADING.pattern, re.IGNORECASE)  # what no new name may be


def first_names(run: Path, clusters: int) -> dict[int, str]:
    """Names by cluster in ``names.json``, where versions before corrections kept them."""
    path = run / NAMES
    names: dict[int, str] = {}
    if not path.exists():
        return names
    try:
        for cluster, name in json.loads(path.read_text(encoding="utf-8")).items():
            names[_cluster(cluster, clusters, str(path))] = check_name(name, path)
    except (ValueError, AttributeError, IndexError, TypeError, OSError):
        raise UserError(f"{path} is damaged or of another run; delete it and run `temi names` again") from None
    return names


def set_names(run: Path, table: Path, clusters: int) -> list[str]:
    """Take the names in the CSV file `table` (columns cluster and name, others are ignored) into `run`.

    Clusters that the file leaves out keep their names; an empty name takes one away. It is one entry of the run's
    corrections, and can be undone.

    Raises
    ------
    UserError
        The file is not such a table, a cluster in it does not exist or occurs twice, or two would have one name.
    """
    with correction_lock(run):
        state = replay_clusters(clusters, read_corrections(run), first_names(run, clusters))
        before = [state.names.get(cluster, "") for cluster in range(clusters)]
        given = _read_table(table, before)
        if gone := [cluster for cluster, name in given.items() if name and cluster in state.merged]:
            raise UserError(f"{table}: cluster {gone[0]} was merged into another; name that, or undo the merger")
        changed = {cluster: name for cluster, name in given.items() if name != before[cluster]}
        check_unique(dict(enumerate(before)) | changed)
        if changed:
            append_corrections(run, [signed(Rename(names=changed))])
    return [changed.get(cluster, name) for cluster, name in enumerate(before)]


def check_unique(names: dict[int, str]) -> None:
    """Refuse two clusters of one name: who reads it could not tell them apart."""
    first: dict[str, int] = {}
    for cluster, name in names.items():
        seen = _seen(name)
        if seen and first.setdefault(seen, cluster) != cluster:
            raise UserError(f"clusters {first[seen]} and {cluster} would both be called {seen!r}; name one differently")


def _seen(name: str) -> str:
    """What of a name a person tells it from others by: no space around it, nothing that does not show."""
    shown = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return visible_name(shown)


def check_heading(cluster: int, name: str, where: object, taken: re.Pattern[str] = HEADING) -> None:
    """Refuse to call `cluster` what another is called without a name, or what images in no cluster are."""
    said = name.strip().lower()
    if taken.fullmatch(name.strip()) and said != f"cluster {cluster}":
        own = "images in no cluster are" if said == "removed" else "another cluster is"
        raise UserError(f"{where}: cluster {cluster} cannot be called {name!r}, as {own}; choose another name")


def check_new_name(cluster: int, name: str, where: object) -> None:
    """Refuse a name that is given now and reads as a heading; one given in an earlier version stays."""
    check_heading(cluster, _seen(name), where, TAKEN)


def chosen_names(names: Mapping[int, str]) -> dict[int, str]:
    """Names that say more than the heading of a cluster without one: what another run takes over."""
    return {cluster: name for cluster, name in names.items() if name and not HEADING.fullmatch(name)}


def display_name(cluster: int, names: list[str]) -> str:
    """What a person reads: the name, or the number where there is none."""
    if cluster == REMOVED:
        return "removed"
    return names[cluster] or f"cluster {cluster}"


def _read_table(path: Path, before: list[str]) -> dict[int, str]:
    """Names by cluster; one that a cluster has had `before` is not asked about again."""
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
        cluster = _cluster(row["cluster"], len(before), where)
        if cluster in found:
            raise UserError(f"{where} names cluster {cluster} again; keep one line per cluster")
        found[cluster] = check_name((row["name"] or "").strip(), where)
        if found[cluster] != before[cluster]:
            check_new_name(cluster, found[cluster], where)
    return found


def _cluster(text: str | None, clusters: int, where: str) -> int:
    if text is None or not text.strip().isascii() or not text.strip().isdigit() or int(text) >= clusters:
        raise UserError(f"{where}: {text!r} is not a cluster of this run; they are 0 to {clusters - 1}")
    return int(text)


def check_name(name: object, where: object) -> str:
    """`name` without space around it, if it is a line of at most MAX_LENGTH characters, and shows or is empty.

    Raises
    ------
    UserError
        It is not; `where` it stands is named.
    """
    if not isinstance(name, str) or len(name) > MAX_LENGTH:
        raise UserError(f"{where}: a name has at most {MAX_LENGTH} characters; shorten it")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise UserError(f"{where}: {name!r} holds a line break or control character; write the name in one line")
    if name.strip() and not visible_name(name):
        raise UserError(f"{where}: {name!r} shows nothing; write a name that can be read")
    return name.strip()
