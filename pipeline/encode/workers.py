"""Batches of images, decoded, resized and cropped by worker processes ahead of the backbone.

Processes rather than threads: some 300 us of Python per image would hold the interpreter lock against the thread that
feeds a GPU. Resizing belongs to the workers because images differ in size and only become a batch by it.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from temi.pipeline.encode.preprocessing import Preprocessing
from temi.pipeline.encode.views import ViewPolicy
from temi.pipeline.errors import USER_ERRORS, UserError
from temi.pipeline.images import ImageNote, ImageSource, UnreadableImage
from temi.pipeline.limits import core_count, free_shared_memory, largest_file

PREFETCH = 2  # batches per worker


class DecodedBatch(NamedTuple):
    """Images of `rows` and their views, ready for the device; zeros where an image could not be read."""

    rows: range
    pixels: UInt8[Tensor, "P b 3 h w"]  # the originals unless they are not wanted, then view after view
    originals: int  # 1, or 0 where they are not wanted
    jitter: Float32[Tensor, "P b 3"]  # factors of brightness, contrast and saturation; 1 for originals
    failures: dict[int, str]  # row -> reason
    notes: dict[int, str]  # row -> what was assumed to read it


class Decoder(Dataset[DecodedBatch]):
    """Batch i of `batches` as a DecodedBatch; a function of the rows and the settings alone."""

    def __init__(
        self, images: ImageSource, preprocessing: Preprocessing, batches: Sequence[range], policy: ViewPolicy | None
    ) -> None:
        self.images, self.preprocessing, self.batches, self.policy = images, preprocessing, batches, policy

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> DecodedBatch:
        rows = self.batches[index]
        passes, originals = _passes(self.policy)
        pixels = torch.zeros(passes, len(rows), 3, *self.preprocessing.crop, dtype=torch.uint8)
        factors = torch.ones(passes, len(rows), 3)
        failures, notes = {}, {}
        self.images.prefetch(rows)
        for place, row in enumerate(rows):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters is a failure or a note
                warnings.simplefilter("always", ImageNote)
                try:
                    self._fill(row, pixels[:, place], factors[:, place])
                except UnreadableImage as error:
                    failures[row] = str(error)
            if caught and row not in failures:
                notes[row] = str(caught[0].message)
        return DecodedBatch(rows, pixels, originals, factors, failures, notes)

    def _fill(self, row: int, pixels: Tensor, factors: Tensor) -> None:
        image = self.images.read(row)
        policy, (_, originals) = self.policy, _passes(self.policy)
        if originals:
            pixels[0] = self.preprocessing.fit(image)
        for number in range(originals, len(pixels)):
            assert policy is not None
            view = policy.draw(row, policy.first + number - originals)
            top, left, height, width = policy.box(view, *image.shape[-2:])
            crop = image[:, top : top + height, left : left + width]
            crop = crop.rot90(view.turns, (-2, -1)) if view.turns else crop
            resized = self.preprocessing.scale(crop, self.preprocessing.crop)
            pixels[number] = resized.flip(-1) if view.flip else resized
            factors[number] = torch.tensor(view.jitter)


def decode_batches(
    images: ImageSource,
    preprocessing: Preprocessing,
    batches: Sequence[range],
    policy: ViewPolicy | None,
    *,
    workers: int,
    pin: bool,
) -> Iterator[DecodedBatch]:
    """All `batches` in order, decoded by `workers` processes (0: by this one), in pinned memory if `pin`."""
    loader: DataLoader[Any] = DataLoader(
        Decoder(images, preprocessing, batches, policy),
        batch_size=None,
        collate_fn=_as_is,
        num_workers=min(workers, len(batches)),
        prefetch_factor=PREFETCH if workers and batches else None,
        pin_memory=pin,
    )
    iterator = iter(loader)
    for rows in batches:
        try:
            yield next(iterator)._replace(rows=rows)  # pinning turns a range into a list
        except RuntimeError as error:
            raise _worker_died(error) from None
        except USER_ERRORS as error:
            raise _without_trace(error) from None


def default_workers(device: torch.device) -> int:
    """Decoding processes: one per core for a GPU, half as many beside a CPU backbone, where they mostly wait."""
    cores = core_count()
    return min(cores, 32) if device.type == "cuda" else min(8, max(1, cores // 2))


def fitting_workers(workers: int, images: int, preprocessing: Preprocessing, policy: ViewPolicy | None) -> int:
    """`workers`, or as many as /dev/shm has room for, through which they hand over batches of `images`, each a file."""
    free = free_shared_memory()
    batch = _passes(policy)[0] * images * 3 * math.prod(preprocessing.crop)
    if batch > largest_file():
        return 0
    return workers if free is None else min(workers, free // max(1, batch * (PREFETCH + 1)))


def _passes(policy: ViewPolicy | None) -> tuple[int, int]:
    """How often an image is embedded, and whether the first time is the image itself."""
    return (policy.passes, policy.originals) if policy else (1, 1)


def _as_is(batch: Any) -> Any:
    return batch


def _without_trace(error: ValueError) -> ValueError:
    """A user's mistake as it was raised: one that comes out of a process brings the trace of that process along."""
    text = str(error).rstrip()
    return type(error)(text.splitlines()[-1].partition(": ")[2]) if "DataLoader worker" in text else error


def _worker_died(error: RuntimeError) -> Exception:
    if "DataLoader worker" not in str(error):
        return error
    return UserError(
        "a process that decodes images died, most likely for lack of memory (or of /dev/shm in a container); "
        "rerun with a smaller embed.workers, 0 for none"
    )
