"""torchvision's labeled data sets by name; train and test are separate row ranges of one cache."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from temi.cache.files import user_cache
from temi.pipeline.errors import UserError, in_a_line
from temi.pipeline.images.arrays import find_idx, idx_images
from temi.pipeline.images.decode import rgb_tensor
from temi.pipeline.images.source import ImageSource, SourceKind, UnreadableImage


class Recipe(NamedTuple):
    """The torchvision class of a data set, and the arguments that select each of its splits."""

    name: str
    splits: dict[str, dict[str, Any]]


def _flag() -> dict[str, dict[str, Any]]:
    return {"train": {"train": True}, "test": {"train": False}}


def _named(*splits: str) -> dict[str, dict[str, Any]]:
    return {split: {"split": split} for split in splits}


SETS: dict[str, Recipe] = {
    "caltech101": Recipe("Caltech101", {"": {}}),
    "caltech256": Recipe("Caltech256", {"": {}}),
    "cifar10": Recipe("CIFAR10", _flag()),
    "cifar100": Recipe("CIFAR100", _flag()),
    "country211": Recipe("Country211", _named("train", "valid", "test")),
    "dtd": Recipe("DTD", _named("train", "val", "test")),
    "eurosat": Recipe("EuroSAT", {"": {}}),
    "fashion-mnist": Recipe("FashionMNIST", _flag()),
    "fgvc-aircraft": Recipe("FGVCAircraft", _named("train", "val", "test")),
    "flowers102": Recipe("Flowers102", _named("train", "val", "test")),
    "food101": Recipe("Food101", _named("train", "test")),
    "gtsrb": Recipe("GTSRB", _named("train", "test")),
    "imagenette": Recipe("Imagenette", _named("train", "val")),
    "kmnist": Recipe("KMNIST", _flag()),
    "mnist": Recipe("MNIST", _flag()),
    "oxford-iiit-pet": Recipe("OxfordIIITPet", _named("trainval", "test")),
    "qmnist": Recipe("QMNIST", _flag()),
    "stl10": Recipe("STL10", _named("train", "test")),
    "sun397": Recipe("SUN397", {"": {}}),
    "svhn": Recipe("SVHN", _named("train", "test")),
    "usps": Recipe("USPS", _flag()),
}
IDX_SETS = ("mnist", "fashion-mnist", "kmnist")


def torchvision_images(name: str, root: Path | None) -> ImageSource:
    """The data set `name` of SETS, below `root` (default: a cache folder of the user), downloaded if it is not there.

    mnist, fashion-mnist and kmnist also accept a `root` that holds their idx files themselves, gzipped or not.

    Raises
    ------
    UserError
        It can be neither found nor downloaded.
    """
    import torchvision.datasets  # seconds, which only these sets need

    recipe, root = SETS[name], root or _default_root()
    kind = getattr(torchvision.datasets, recipe.name)
    idx = find_idx(root, recipe.name) if name in IDX_SETS else None
    if idx is not None:
        return idx_images(idx, tuple(kind.classes))
    try:
        root.mkdir(parents=True, exist_ok=True)
        parts = {split: kind(root, download=True, **options) for split, options in recipe.splits.items()}
    except (OSError, RuntimeError, ImportError) as error:  # URLError is an OSError
        reason = in_a_line(error)
        raise UserError(
            f"data set {name} is not below {root} and cannot be downloaded ({reason}); "
            "give --root a folder that holds it, or a folder of images instead"
        ) from None
    return TorchvisionImages(name, parts)


class TorchvisionImages(ImageSource):
    """Splits of one torchvision data set, one after the other. Keys are SPLIT/INDEX."""

    def __init__(self, name: str, parts: dict[str, Any]) -> None:
        self._parts = list(parts.values())
        self._starts = np.cumsum([0, *map(len, self._parts)])
        ranges = {split: (int(self._starts[i]), int(self._starts[i + 1])) for i, split in enumerate(parts)}
        self.splits = ranges if len(ranges) > 1 else {}
        self.keys = [f"{split}/{row}".lstrip("/") for split, part in parts.items() for row in range(len(part))]
        self.labels = np.concatenate([_labels(part) for part in self._parts])
        self.classes = _classes(self._parts[0], int(self.labels.max()) + 1)
        # torchvision checks the files against its own checksums, so name and lengths stand for the content
        self.digest = f"torchvision:{name}:" + ",".join(f"{split}={len(part)}" for split, part in parts.items())

    def data(self, row: int) -> bytes:
        return self.read(row).numpy().tobytes()

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        try:
            return rgb_tensor(self._parts[part][row - int(self._starts[part])][0])
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage(in_a_line(error)) from None


def _labels(part: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Labels without decoding an image: every class of torchvision has them, under one of four names."""
    for name in ("targets", "labels", "_labels", "y"):
        if hasattr(part, name):
            return np.asarray(getattr(part, name)).astype(np.int32)
    return np.array([label for _, label in part._samples], np.int32)


def _classes(part: Any, count: int) -> tuple[str, ...]:
    names = getattr(part, "classes", None) or getattr(part, "categories", None) or range(count)
    return tuple(name if isinstance(name, str) else str(name) for name in names)


def _default_root() -> Path:
    return user_cache("datasets")


KIND = SourceKind(
    "data set", SETS.__contains__, lambda source, root, max_pixels: torchvision_images(source, root), is_path=False
)
