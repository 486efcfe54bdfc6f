"""Embeddings in the formats of other programs, opened without unpickling anything."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from temi.cache.convert.export import FAILURES_KEY, MANIFEST_KEY
from temi.cache.files import unseal
from temi.cache.labels import number_labels
from temi.cache.manifest import Manifest
from temi.cache.schema import FAILURES, MANIFEST, CacheError
from temi.cache.words import counted


class Rows(Protocol):
    """An (N, ...) array of floats of which a slice can be taken; it need not be in memory."""

    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class Source:
    """Embeddings in a file of another format."""

    path: Path
    embedding: Rows  # (N, D)
    views: Rows | None  # (N, V, D), or (N, V * D) as Parquet holds them
    keys: Sequence[str]
    labels: npt.NDArray[np.int32]
    classes: tuple[str, ...]
    precision: str  # dtype that the embeddings came in
    failures: Mapping[int, str]
    manifest: Manifest | None  # of the cache that was exported; None for embeddings made elsewhere


def open_source(path: Path, keys: Path | None, labels: Path | None) -> Source:
    """Open `path` by what it is: a folder of .npy files, .npy, .parquet or .safetensors."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CacheError(f"{path} does not exist; give an exported cache, or a .npy, .parquet or .safetensors file")
    openers = {".npy": _open_npy, ".parquet": _open_parquet, ".safetensors": _open_safetensors}
    if path.suffix not in openers:
        raise CacheError(f"cannot import {path}; give an exported cache, or a .npy, .parquet or .safetensors file")
    return openers[path.suffix](path, keys, labels)


def _open_folder(folder: Path) -> Source:
    if not (folder / MANIFEST).exists():
        raise CacheError(f"{folder} is not an exported cache (no {MANIFEST}); import its .npy file with --keys instead")
    manifest = _manifest((folder / MANIFEST).read_bytes(), folder / MANIFEST)
    return Source(
        path=folder,
        embedding=_load_npy(folder / "embedding.npy", 2),
        views=_load_npy(folder / "views.npy", 3),
        keys=_read_keys(folder / "keys.txt"),
        labels=_load_labels(folder / "label.npy")[0],
        classes=manifest.classes,
        precision="float16",
        failures=_read_failures_csv(folder / FAILURES),
        manifest=manifest,
    )


def _open_npy(path: Path, keys: Path | None, labels: Path | None) -> Source:
    embedding = _load_npy(path, 2)
    if keys is None:
        raise CacheError(f"{path} holds no image names; give --keys FILE, a text file of one name per line")
    names = _read_keys(keys)
    numbers, classes = _load_labels(labels) if labels else _no_labels(len(names))
    return Source(path, embedding, None, names, numbers, classes, str(embedding.dtype), {}, None)


def _manifest(text: str | bytes, path: Path) -> Manifest:
    """The manifest that was exported along."""
    manifest = Manifest.parse(unseal(text.encode() if isinstance(text, str) else text, path), path)
    if manifest.earlier:
        raise CacheError(f"{path} is of a cache that grew, whose parts it does not tell apart; copy the cache instead")
    return manifest


def _failures(text: str, path: Path) -> dict[int, str]:
    """Row -> reason, as exported along."""
    try:
        return {int(row): str(reason) for row, reason in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise CacheError(f"{path} holds a damaged list of unreadable images; export it again") from None


def _load_npy(path: Path, axes: int) -> npt.NDArray[Any]:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise CacheError(f"{path} is missing; export the cache again") from None
    except (ValueError, EOFError) as error:
        raise CacheError(f"{path} is not a .npy file of plain numbers ({error}); save it with numpy.save") from None
    if not isinstance(values, np.ndarray) or values.ndim != axes or values.dtype.kind != "f":
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "no array"
        raise CacheError(
            f"{path} holds {found} instead of floats with {counted(axes, 'axis', 'axes')}; import one vector per image"
        )
    return values


def _no_labels(rows: int) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    return np.full(rows, -1, np.int32), ()


def _load_labels(path: Path) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(f"labels {path} are not a .npy file of plain values ({error})") from None
    return _label_numbers(values, path)


def _label_numbers(values: Any, path: Path) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """See `number_labels`; `values` is one value per image."""
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iufbUO":
        raise CacheError(f"the labels of {path} are {values.dtype} {values.shape}, not one number or name per image")
    try:
        return number_labels(values.tolist())
    except CacheError as error:
        raise CacheError(f"the labels of {path}: {error}") from None


def _read_keys(path: Path) -> list[str]:
    """One image name per line; a line that starts with a double quote is a JSON string."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
        if lines[-1] == "":
            lines.pop()
        return [json.loads(line) if line.startswith('"') else line.removesuffix("\r") for line in lines]
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} is not a text file of one image name per line ({error})") from None


def _read_failures_csv(path: Path) -> dict[int, str]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return {int(line["row"]): line["reason"] for line in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise CacheError(f"{path} is missing or damaged ({error}); export the cache again") from None


def _open_safetensors(path: Path, keys: Path | None, labels: Path | None) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="np")
        metadata = file.metadata() or {}
        names = set(file.keys())
        if "embedding" not in names:
            raise CacheError(f"{path} holds {sorted(names)[:10]}, no tensor `embedding`; save it under that name")
        manifest = _manifest(metadata[MANIFEST_KEY], path) if MANIFEST_KEY in metadata else None
        failures = _failures(metadata[FAILURES_KEY], path) if FAILURES_KEY in metadata else {}
        embedding = _Tensor(file, "embedding", 2, path)
        key_list = _tensor_keys(file, names, path) if keys is None else _read_keys(keys)
        values = file.get_tensor("label") if "label" in names else None
        numbers, classes = _no_labels(len(key_list)) if values is None else _label_numbers(values, path)
        views = _Tensor(file, "views", 3, path) if "views" in names else None
    except SafetensorError as error:
        raise CacheError(f"{path} is not a valid safetensors file ({error})") from None
    if labels:
        numbers, classes = _load_labels(labels)
    classes = manifest.classes if manifest else classes
    return Source(path, embedding, views, key_list, numbers, classes, embedding.precision, failures, manifest)


class _Tensor:
    """A tensor of a safetensors file, read slice by slice."""

    def __init__(self, file: Any, name: str, axes: int, path: Path) -> None:
        self._slice = file.get_slice(name)
        self.shape: tuple[int, ...] = tuple(self._slice.get_shape())
        dtypes = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
        self.precision = dtypes.get(self._slice.get_dtype(), "")
        if len(self.shape) != axes or self.precision in ("", "bfloat16"):
            kind = self._slice.get_dtype()
            raise CacheError(f"{path}: {name} is {kind} {self.shape} instead of F16, F32 or F64 with {axes} axes")

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = self._slice[rows]
        return values


def _tensor_keys(file: Any, names: set[str], path: Path) -> list[str]:
    if not {"key_bytes", "key_stops"} <= names:
        raise CacheError(f"{path} holds no image names; give --keys FILE, a text file of one name per line")
    text, stops = file.get_tensor("key_bytes").tobytes(), file.get_tensor("key_stops").tolist()
    try:
        return [text[start:stop].decode() for start, stop in zip([0, *stops], stops, strict=False)]
    except (UnicodeDecodeError, TypeError) as error:
        raise CacheError(f"{path} holds damaged image names ({error}); export it again") from None


def _open_parquet(path: Path, keys: Path | None, labels: Path | None) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if "embedding" not in names or (keys is None and "key" not in names):
            raise CacheError(f"{path} has columns {names[:10]}; it needs `embedding` and `key`, rename yours to these")
        metadata = file.schema_arrow.metadata or {}
        text = metadata.get(MANIFEST_KEY.encode())
        manifest = _manifest(text, path) if text else None
        key_list = _read_keys(keys) if keys else _column(file, "key", path)
        if labels:
            numbers, classes = _load_labels(labels)
        elif "label" in names:
            numbers, classes = _label_numbers(np.array(_column(file, "label", path, nulls=True), object), path)
        else:
            numbers, classes = _no_labels(len(key_list))
        embedding = _Lists(file, "embedding", path)
        views = _Lists(file, "views", path) if manifest and manifest.views else None
        reasons = _column(file, "failure", path, nulls=True) if manifest else []
    except pa.ArrowException as error:
        raise CacheError(f"{path} is not a valid Parquet file ({error})") from None
    failures = {row: reason for row, reason in enumerate(reasons) if reason is not None}
    classes = manifest.classes if manifest else classes
    return Source(path, embedding, views, key_list, numbers, classes, embedding.precision, failures, manifest)


def _column(file: Any, name: str, path: Path, *, nulls: bool = False) -> list[Any]:
    column = file.read(columns=[name]).column(name)
    if column.null_count and not nulls:
        raise CacheError(
            f"{path} has no {name} in {counted(column.null_count, 'row')}; remove or fill in what is empty"
        )
    values: list[Any] = column.to_pylist()
    if name != "key" or all(isinstance(value, str) for value in values):
        return values
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise CacheError(f"{path}: column key holds {column.type} instead of text or whole numbers")
    return [str(value) for value in values]


class _Lists:
    """A column of equally long lists of a Parquet file; the row group that was read last is kept."""

    def __init__(self, file: Any, name: str, path: Path) -> None:
        self._file, self._name, self._path = file, name, path
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._stops = np.cumsum([0, *counts])
        self._kept: tuple[int, npt.NDArray[Any]] = (-1, np.empty((0, 0)))
        filled = next((group for group, count in enumerate(counts) if count), None)
        first = np.empty((0, 1), np.float32) if filled is None else self._group(filled)
        self.shape: tuple[int, ...] = (int(self._stops[-1]), first.shape[1])
        self.precision = str(first.dtype)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        parts = []
        for group in range(len(self._stops) - 1):
            start, stop = max(rows.start, self._stops[group]), min(rows.stop, self._stops[group + 1])
            if start < stop:
                parts.append(self._group(group)[start - self._stops[group] : stop - self._stops[group]])
        if {part.shape[1] for part in parts} - {self.shape[1]}:
            raise CacheError(f"{self._path}: column {self._name} holds lists of different lengths")
        return np.concatenate(parts)

    def _group(self, group: int) -> npt.NDArray[Any]:
        if self._kept[0] != group:
            self._kept = (group, self._read(group))
        return self._kept[1]

    def _read(self, group: int) -> npt.NDArray[Any]:
        import pyarrow as pa

        column = self._file.read_row_group(group, columns=[self._name]).column(0).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            column = column.cast(pa.large_list(column.type.value_type))
        try:
            lengths = column.value_lengths().unique().to_pylist()
            values = column.flatten().to_numpy(zero_copy_only=False)
        except AttributeError:
            raise CacheError(f"{self._path}: column {self._name} is {column.type} instead of lists of floats") from None
        if len(lengths) != 1 or not lengths[0] or values.dtype.kind != "f":
            raise CacheError(f"{self._path}: column {self._name} is not one list of floats per row, all of one length")
        return np.asarray(values).reshape(len(column), lengths[0])
