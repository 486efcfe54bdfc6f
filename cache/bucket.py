"""Objects in a bucket, through fsspec: whole ones, tried again after an error that passes.

Credentials come from the standard chain of each provider (environment, files, the machine's role) and are never seen
here: they are in no URL, no log and no file of ours.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from temi.cache.schema import CacheError

PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
PACKAGES |= {"az": ("adlfs", "azure"), "abfs": ("adlfs", "azure")}
ATTEMPTS = 5
VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime")  # as the providers' packages name it
FIRST_WAIT = 0.5  # seconds, twice as long after each error
PATIENCE = 20.0  # seconds without an answer after which a person is told
_URL = re.compile(rf"({'|'.join(PACKAGES)}):/+(.+)")

MISTAKES = ("ProfileNotFound", "ParamValidationError", "InvalidRegionError", "ConfigParseError", "NoRegionError")
"""Errors of the provider's packages that another try does not mend."""

T = TypeVar("T")


def bucket_url(place: Path | str) -> str | None:
    """The URL that `place` is, also one that was made a path of (``s3:/bucket/cache``); None for a folder."""
    found = _URL.fullmatch(str(place))
    if found is None:
        return None
    if "@" in found[2].partition("/")[0]:
        raise CacheError("a URL with credentials in it is not taken; set them where the provider's tools find them")
    return f"{found[1]}://{found[2].rstrip('/')}"


class MissingObject(CacheError):
    """A bucket, or an object in it, is not there."""


class Bucket:
    """The objects below one URL, by their names."""

    def __init__(self, url: str) -> None:
        self.url = url
        package, extra = PACKAGES[url.partition(":")[0]]
        try:
            import fsspec

            files, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError:
            raise CacheError(f"{url} needs {package}, not installed; pip install 'temi-clustering[{extra}]'") from None
        self._files: Any = files

    def sizes(self) -> dict[str, int]:
        """Bytes of every object, by name; empty where there is none."""

        def listed() -> list[dict[str, Any]]:
            try:
                found: list[dict[str, Any]] = self._files.ls(self._root, detail=True, refresh=True)
            except FileNotFoundError:
                self._files.ls(self._root.partition("/")[0], detail=False)  # a missing bucket is an error
                found = []
            return found

        entries = self._try(listed, "list")
        return {entry["name"].rpartition("/")[2]: int(entry["size"]) for entry in entries if entry["type"] == "file"}

    def version(self, name: str) -> str:
        """What tells an object from another of the same name: its ETag, or when it was written."""

        def known() -> str:
            about = self._files.info(f"{self._root}/{name}", refresh=True)
            return str(next((about[key] for key in VERSIONS if about.get(key)), ""))

        return self._try(known, "read")

    def tree(self) -> dict[str, int]:
        """Bytes of every object, also of those deeper down, by its path from here; empty where there is none."""

        def found() -> dict[str, Any]:
            self._files.ls(self._root.partition("/")[0], detail=False)  # a missing bucket is an error
            return dict(self._files.find(self._root, detail=True, refresh=True))

        skip = len(self._root) + 1
        return {path[skip:]: int(entry["size"]) for path, entry in self._try(found, "list").items() if path[skip:]}

    def read_each(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """As `read`, with None for an object that is not there."""
        names = list(names)
        try:
            return dict(self.read(names))
        except MissingObject:
            return {name: self._read_or_none(name) for name in names}

    def _read_or_none(self, name: str) -> bytes | None:
        try:
            return self.read([name])[name]
        except MissingObject:
            return None

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Whole objects, several at once; those that failed are asked for again."""
        names, found = list(names), dict[str, bytes]()

        def read_rest() -> None:
            paths = {f"{self._root}/{name}": name for name in names if name not in found}
            # Not `cat`, which takes a name with brackets or stars for a pattern.
            answers = self._files.cat_ranges(list(paths), None, None, on_error="return") if paths else []
            answered = dict(zip(paths, answers, strict=True))
            found.update({paths[path]: data for path, data in answered.items() if isinstance(data, bytes)})
            for error in answers:
                if isinstance(error, Exception):
                    raise error

        self._try(read_rest, "read")
        return found

    def write(self, name: str, data: bytes) -> None:
        """Make one object: it is there whole, or not at all."""
        self._try(lambda: self._files.pipe_file(f"{self._root}/{name}", data), "write to")

    def _try(self, action: Callable[[], T], what: str) -> T:
        with _told(f"still waiting to {what} {self.url}; the bucket has not answered in {PATIENCE:.0f} s"):
            return self._tried(action, what)

    def _tried(self, action: Callable[[], T], what: str) -> T:
        for attempt in range(ATTEMPTS):
            try:
                return action()
            except FileNotFoundError:
                raise MissingObject(f"cannot {what} {self.url}: no such bucket or object; check the URL") from None
            except PermissionError:
                raise self._refused(what) from None
            except Exception as error:
                if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                    raise self._refused(what) from None
                if isinstance(error, ValueError) or type(error).__name__ in MISTAKES:
                    reason = " ".join(str(error).split())
                    raise CacheError(f"cannot {what} {self.url}: {reason}; check the URL and AWS_* variables") from None
                if attempt == ATTEMPTS - 1:
                    raise CacheError(
                        f"cannot {what} {self.url}: {type(error).__name__} after {ATTEMPTS} tries; check the network "
                        "and rerun the same command, finished shards are kept"
                    ) from None
            time.sleep(FIRST_WAIT * 2**attempt)
        raise AssertionError("unreachable")

    def _refused(self, what: str) -> CacheError:
        return CacheError(
            f"cannot {what} {self.url}: access is refused; set credentials where the provider's tools find them "
            "(for s3: AWS_PROFILE, ~/.aws, or the machine's role)"
        )


@contextmanager
def _told(line: str) -> Iterator[None]:
    """Print `line` once where what is inside takes longer than PATIENCE."""
    timer = threading.Timer(PATIENCE, print, [line], {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
