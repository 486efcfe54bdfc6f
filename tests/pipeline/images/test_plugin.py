"""A source of images in a file of the user's own: one class and one registration, loaded only where it is named."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from photos import PhotoRun
from PIL import Image
from typer.testing import CliRunner

from temi.cache import EmbeddingCache
from temi.cli import app
from temi.pipeline.errors import UserError
from temi.pipeline.images import open_source
from temi.pipeline.images.recorded import open_images
from temi.pipeline.images.source import KINDS
from temi.pipeline.plugins import load_plugin

GUIDE = Path(__file__).parents[3] / "docs/adding-a-source.md"
PLUGIN = GUIDE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


@pytest.fixture
def zipped(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The plugin of the guide, and a zip of two images and a note; what is registered is forgotten afterwards."""
    before = KINDS.copy()
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in (10, 2):
            Image.fromarray(np.full((30, 40, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
            archive.write(tmp_path / f"{number}.png", f"{number}.png")
        archive.writestr("note.txt", "no image")
    (tmp_path / "zips.py").write_text(PLUGIN)
    yield tmp_path / "zips.py", tmp_path / "a.zip"
    KINDS[:] = before


def test_the_guide_reads_images_of_a_zip(zipped: tuple[Path, Path]) -> None:
    plugin, archive = zipped
    with pytest.raises(UserError, match="is a file, not a folder"):
        open_source(str(archive), max_pixels=10**6)
    load_plugin(plugin)
    images = open_source(str(archive), max_pixels=10**6)
    assert images.keys == ["2.png", "10.png"]
    assert images.read(0).unique().tolist() == [2]
    assert images.path(0) is None
    assert images.skipped == [("note.txt", ".txt")]


def test_embed_takes_a_plugin_and_its_cache_asks_for_it(
    zipped: tuple[Path, Path], photo_run: PhotoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, archive = zipped
    out = plugin.parent / "cache"
    setting = f"embed.backbone={photo_run.weights}"
    arguments = ["embed", str(archive), "--out", str(out), "--set", setting, "--set", "embed.workers=0"]
    assert CliRunner().invoke(app, arguments).exit_code == 2
    done = CliRunner().invoke(app, [*arguments, "--plugin", str(plugin)])
    assert done.exit_code == 0, done.output
    assert (out / "skipped.csv").read_text() == "path,reason\nnote.txt,.txt\n"
    cache = EmbeddingCache.open(out)
    assert cache.verify() == []
    assert open_images(cache, None, 10**6).keys == cache.keys
    monkeypatch.setattr(
        "temi.pipeline.images.recorded.KINDS", [kind for kind in KINDS if kind.name in ("folder", "file")]
    )
    with pytest.raises(UserError, match=r"source 'zip' of a plugin; name it by --plugin FILE"):
        open_images(cache, None, 10**6)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "does not exist"), ("1 / 0", "ZeroDivisionError"), ("def", "SyntaxError")],
)
def test_a_bad_plugin_is_one_sentence(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text:
        (tmp_path / "p.py").write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_plugin(tmp_path / "p.py")


def test_nothing_of_a_plugin_is_loaded_unless_it_is_named(zipped: tuple[Path, Path]) -> None:
    plugin, archive = zipped
    temi = Path(sys.executable).with_name("temi")
    done = subprocess.run(
        [temi, "embed", archive, "--out", "c", "--set", "embed.backbone=./an-encoder"],
        cwd=plugin.parent,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 2
    assert "is a file, not a folder" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("{}[row]", "KeyError: 0"),
        (r"(_ for _ in ()).throw(ValueError(f'no {row}\nfor you'))", "ValueError: no 0 for you;"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_plugin_says_where_also_from_another_process(
    zipped: tuple[Path, Path], photo_run: PhotoRun, workers: int, wrong: str, told: str
) -> None:
    plugin, archive = zipped
    plugin.write_text(PLUGIN.replace("return decode_image(self.data(row), self.max_pixels)", f"return {wrong}"))
    line = 1 + plugin.read_text().split("\n").index(f"        return {wrong}")
    sets = ["--set", f"embed.backbone={photo_run.weights}", "--set", f"embed.workers={workers}"]
    done = CliRunner().invoke(
        app, ["embed", str(archive), "--out", str(plugin.parent / "c"), "--plugin", str(plugin), *sets]
    )
    assert done.exit_code == 2
    assert f"temi: the plugin {plugin} failed at line {line}: {told}" in done.stderr
    assert done.stderr.endswith("; correct the file\n")
