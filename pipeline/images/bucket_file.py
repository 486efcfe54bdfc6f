"""One object of a bucket as a file of this machine."""

import os
from pathlib import PurePosixPath

import xxhash

from temi.cache.bucket import Bucket
from temi.cache.files import make_folder
from temi.cache.remote import WHOLE, fetch_whole, folder_of


class BucketFile(os.PathLike[str]):
    """An object that becomes a file of this machine when it is opened, and stays for a while; see `drop_oldest`."""

    def __init__(self, url: str, name: str, size: int) -> None:
        self.url, self.name, self.size = url, name, size
        self._version = ""  # once it is known

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return PurePosixPath(self.name).stem

    def __str__(self) -> str:
        return f"{self.url}/{self.name}"

    def __fspath__(self) -> str:
        bucket = Bucket(self.url)
        self._version = self._version or bucket.version(self.name)  # another object may have this name and size
        folder = folder_of(self.url) / WHOLE / xxhash.xxh3_64_hexdigest(self._version.encode())
        make_folder(folder)
        return str(fetch_whole(bucket, self.name, folder, self.size))
