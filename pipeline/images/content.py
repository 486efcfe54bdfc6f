"""A digest of everything in the images, for caches that are to notice an image changed in place."""

from collections.abc import Iterable

import xxhash

from temi.pipeline.images.source import ImageSource, UnreadableImage
from temi.pipeline.progress import Progress

SIGN = "+content:"


def content_digest(images: ImageSource) -> str:
    """`images.digest`, followed by a digest of the bytes of every image; reads all of them once."""
    return f"{images.digest}{SIGN}{join_digests(content_digests(images))}"


def content_digests(images: ImageSource) -> list[bytes]:
    """A digest of the bytes of every image; reads all of them once."""
    digests: list[bytes] = []
    with Progress("digest", len(images.keys), "img") as progress:
        for row in range(len(images.keys)):
            try:
                digests.append(xxhash.xxh3_128_digest(images.data(row)))
            except UnreadableImage:
                digests.append(b"unreadable")
            progress.advance(1)
    return digests


def join_digests(digests: Iterable[bytes]) -> str:
    """One digest of those of all images."""
    return xxhash.xxh3_128_hexdigest(b"".join(digests))


def list_digest(recorded: str) -> str:
    """The part of a fingerprint's digest that tells the list of images, which is known without reading them."""
    return recorded.partition(SIGN)[0]
