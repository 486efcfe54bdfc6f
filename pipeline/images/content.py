"""A digest of everything in the images, for caches that are to notice an image changed in place."""

import xxhash

from temi.pipeline.images.source import ImageSource, UnreadableImage
from temi.pipeline.progress import Progress

SIGN = "+content:"


def content_digest(images: ImageSource) -> str:
    """`images.digest`, followed by a digest of the bytes of every image; reads all of them once."""
    state = xxhash.xxh3_128()
    with Progress("digest", len(images.keys), "img") as progress:
        for row in range(len(images.keys)):
            try:
                state.update(xxhash.xxh3_128_digest(images.data(row)))
            except UnreadableImage:
                state.update(b"unreadable")
            progress.advance(1)
    return f"{images.digest}{SIGN}{state.hexdigest()}"


def list_digest(recorded: str) -> str:
    """The part of a fingerprint's digest that tells the list of images, which is known without reading them."""
    return recorded.partition(SIGN)[0]
