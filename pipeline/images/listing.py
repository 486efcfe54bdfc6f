"""What sources share: names and their order, the digest of a list, splits and labels told from names or values."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Int32

from temi.cache.labels import number_labels
from temi.pipeline.errors import UserError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
SPLIT_NAME = re.compile(rf"({'|'.join(SPLITS)})([ _-]?(set|data|images|[0-9]{{4}}))?", re.IGNORECASE)


def escaped(name: str) -> str:
    r"""A name of the file system as valid Unicode: a byte that is not UTF-8 becomes ``\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(names: Sequence[str]) -> list[str]:
    """Keys for distinct names of the file system: `escaped`, and distinct still."""
    keys = [escaped(name) for name in names]
    taken = {key for key, name in zip(keys, names, strict=True) if key == name}
    for row, name in enumerate(names):
        if keys[row] != name:
            while keys[row] in taken:  # another file bears the escaped name itself
                keys[row] = keys[row].replace("\\", "\\\\")
            taken.add(keys[row])
    return keys


def natural_key(name: str) -> tuple[object, ...]:
    """Sort key of a posix path: part by part, digits by value, ties by the text itself; independent of the locale."""
    parts = name.split("/")
    return (*(tuple(_chunk(chunk) for chunk in re.split(r"([0-9]+)", part) if chunk) for part in parts), (), *parts)


def _chunk(text: str) -> tuple[int, int, str]:
    return (0, int(text), "") if "0" <= text[0] <= "9" else (1, 0, text)


def digest(keys: list[str], sizes: Iterable[int]) -> str:
    """Identifies an ordered list of images by name and size in bytes, not by times or place."""
    state = xxhash.xxh3_128()
    for key, size in zip(keys, sizes, strict=True):
        state.update(f"{key}\0{size}\n".encode())
    return state.hexdigest()


def files_of(source: str, suffix: str) -> list[Path]:
    """The files with `suffix` that `source` names: itself, those it matches, or those of a folder of no others.

    What exists is no pattern, whatever signs are in its name.
    """
    path = Path(source)
    try:
        if path.is_dir():
            files = [file for file in path.iterdir() if not file.name.startswith(".")]
        elif path.exists() or not is_pattern(source):
            files = [path]
        else:
            files = list(path.parent.glob(path.name))
    except OSError:  # `FolderImages` says why
        return []
    files.sort(key=lambda file: natural_key(file.as_posix()))
    return files if {file.suffix.lower() for file in files} == {suffix} else []


def is_pattern(source: str) -> bool:
    """Whether `source` may stand for several files."""
    return any(sign in Path(source).name for sign in "*?[")


def file_size(path: Path) -> int:
    """Bytes of a file for `digest`; 0 where there is none, whose row is unreadable."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def split_name(folder: str) -> str | None:
    """The split that a folder of this name holds, e.g. train for ``Training``, ``train_set`` and ``train2017``."""
    found = SPLIT_NAME.fullmatch(folder)
    return SPLITS[found[1].lower()] if found else None


def path_splits(paths: list[list[str]]) -> dict[str, tuple[int, int]]:
    """Row range of each split, if all of the top folders are called like a split."""
    tops = [split_name(path[0]) if len(path) > 1 else None for path in paths]
    rows: dict[str, list[int]] = {}
    for row, top in enumerate(tops):
        if top is None:
            return {}
        rows.setdefault(top, []).append(row)
    ranges = {top: (members[0], members[-1] + 1) for top, members in rows.items()}
    contiguous = all(stop - start == len(rows[top]) for top, (start, stop) in ranges.items())
    return ranges if contiguous else {}  # "Train" beside "train" may interleave: then they are no splits


def path_labels(paths: list[list[str]]) -> tuple[Int32[np.ndarray, " N"], tuple[str, ...]]:
    """Labels and classes, if every image lies directly in one of two or more folders; else all -1 and none."""
    names = sorted({path[0] for path in paths}, key=natural_key)
    if any(len(path) != 2 for path in paths) or len(names) < 2:
        return np.full(len(paths), -1, np.int32), ()
    index = {name: position for position, name in enumerate(names)}
    return np.array([index[path[0]] for path in paths], np.int32), tuple(names)


def splits_and_labels(
    keys: Sequence[str],
) -> tuple[dict[str, tuple[int, int]], Int32[np.ndarray, " N"], tuple[str, ...]]:
    """Splits by the top folders in `keys`, and labels and classes by the folders below."""
    paths = [key.split("/") for key in keys]
    splits = path_splits(paths)
    return splits, *path_labels([path[1:] for path in paths] if splits else paths)


def value_labels(values: Sequence[object]) -> tuple[Int32[np.ndarray, " N"], tuple[str, ...]]:
    """Labels and classes of a column as `number_labels` has them, with names in natural order."""
    labels, classes = number_labels(values, order=natural_key)
    return labels, classes


def value_splits(values: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Row range of each split, from one name per row in which equal names are neighbors; none for a single split."""
    names = list(dict.fromkeys(values))
    firsts = [values.index(name) for name in names]
    return dict(zip(names, zip(firsts, [*firsts[1:], len(values)], strict=True), strict=True)) if len(names) > 1 else {}


def refuse_twins(keys: Sequence[str], where: object) -> None:
    """Raise UserError if two rows have the same key: an assignment could not be told from the other's."""
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twin = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UserError(f"{where} names {twin} twice; remove one of the two")
