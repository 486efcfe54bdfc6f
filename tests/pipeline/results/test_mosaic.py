"""A notebook shows a run as a mosaic: names escaped, pictures inside the page, cards alone where images are gone."""

import re
import shutil
from pathlib import Path

from photos import HOSTILE, PhotoRun

import temi
from temi.cache.words import counted
from temi.pipeline.results.correct import correct
from temi.pipeline.results.corrections import Rename
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.mosaic import EACH


def test_a_run_shows_its_clusters(photo_run: PhotoRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(photo_run.run, run)
    correct(FinishedRun(run), [Rename(names={0: "<b>reds</b>"})])
    opened = temi.open_run(run)
    shown, sizes = opened._repr_html_(), opened.assignments["cluster"].value_counts()
    assert f"44 images in {counted(len(sizes), 'cluster')}" in shown
    assert "&lt;b&gt;reds&lt;/b&gt;" in shown
    assert (
        len(re.findall(r'<img alt="[^"<>]+" src="data:image/webp;base64,[A-Za-z0-9+/=]+"', shown))
        == sizes.clip(upper=EACH).sum()
    )
    assert "<script" not in shown
    assert HOSTILE not in shown


def test_images_that_are_gone_leave_cards(photo_run: PhotoRun, tmp_path: Path) -> None:
    shutil.copytree(photo_run.cache, tmp_path / "cache")
    shutil.copytree(photo_run.run, tmp_path / "run")
    note = tmp_path / "cache/source.json"
    note.write_text(note.read_text().replace(str(photo_run.photos), str(tmp_path / "gone")))
    shown = temi.open_run(tmp_path / "run", tmp_path / "cache")._repr_html_()
    assert "44 images in" in shown
    assert "<img" not in shown
