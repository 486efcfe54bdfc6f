"""A person's afternoon in a real Chromium, on 2,000 photos and on 50,000 rows: looked at, corrected, killed, kept."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsing import NEEDS_BROWSER, browsing, draw_around, until, visit
from mixtures import mixture, write_cache
from photos import PhotoRun, photo
from serving import Server, serving

from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed

pytestmark = [*NEEDS_BROWSER, pytest.mark.long]
TEMI = Path(sys.executable).with_name("temi")
PAINTS = ((200, 30, 30), (30, 180, 40), (20, 40, 210), (200, 190, 30), (150, 30, 170), (30, 190, 190))
SHORT = ("heads.count=4", "neighbors.k=8", "train.epochs=0", "train.min_steps=60", "train.tensorboard=false")
WANTED = 30  # images in the lasso, or a few more


@pytest.fixture
def cache(request: pytest.FixtureRequest, photo_run: PhotoRun, tmp_path: Path) -> Path:
    """2,000 JPEGs of six colors, embedded; or 50,000 rows in twelve clusters."""
    if request.param == "rows":
        write_cache(tmp_path / "cache", mixture(rows=50_000, clusters=12, dim=32)[0], shard_rows=8192)
        return tmp_path / "cache"
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(2000):
        (tmp_path / f"photos/{number:04}.jpg").write_bytes(photo(PAINTS[number % len(PAINTS)], random))
    settings = EmbedConfig(backbone=str(photo_run.weights), views=0, batch_size=64, workers=0, device="cpu")
    embed(str(tmp_path / "photos"), tmp_path / "cache", settings)
    return tmp_path / "cache"


@pytest.mark.parametrize("cache", ["photos", "rows"], indirect=True)
def test_what_a_person_put_right_outlives_kills_and_training(cache: Path, tmp_path: Path) -> None:
    run = train(cache, tmp_path / "run", "--clusters", "6")
    with looking_at(run) as (browser, server):
        open_large(browser)
        taken = lasso(browser)
        choose(browser, "move", "move-to", "a new cluster")
        until(browser, "store.state.clusters === 7")
        server.kill()
    with looking_at(run) as (browser, server):  # another browser, another server
        assert members(browser, 6) == taken
        visit(browser, "cluster-0")
        until(browser, "!document.getElementById('merge-with').closest('section').hidden")
        browser.find_element("css selector", "#merge-with option[value='1']").click()
        browser.find_element("id", "merge").click()
        until(browser, "store.state.merged.has(1)")
        browser.find_element("id", "undo").click()
        until(browser, "!store.state.merged.has(1)")
        browser.find_element("id", "redo").click()
        until(browser, "store.state.merged.has(1)")
        server.kill()
    with looking_at(run) as (browser, _):
        assert members(browser, 6) == taken
        assert browser.execute_script("return store.state.merged.has(1)")
    keys = pd.read_csv(run / "assignments.csv")["key"][taken]
    table = exported(run)
    assert set(table[keys]) == {6}
    assert not (table == 1).any()
    kept = exported(train(cache, tmp_path / "again", "--corrections", run))
    assert kept[keys].nunique() == 1
    assert (kept.drop(keys) != kept[keys].iloc[0]).mean() > 0.5


def train(cache: Path, run: Path, *options: object) -> Path:
    temi("train-heads", cache, "--out", run, *options, *(word for one in SHORT for word in ("--set", one)))
    return run


def exported(run: Path) -> "pd.Series[int]":
    """The cluster of every image, by its name."""
    temi("export", run, "--out", run / "table.csv")
    return pd.read_csv(run / "table.csv").set_index("key")["cluster"]


def temi(*arguments: object) -> None:
    done = subprocess.run([TEMI, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@contextmanager
def looking_at(run: Path) -> Iterator[tuple[Any, Server]]:
    with serving(run) as server, browsing(server.address) as browser:
        yield browser, server


def open_large(browser: Any) -> None:
    """The first picture of a cluster, as large as it is, and its successor by an arrow key."""
    from selenium.webdriver.common.keys import Keys

    visit(browser, "cluster-0")
    until(browser, "document.querySelector('#members .open')")
    browser.find_element("css selector", "#members .open").click()
    until(browser, "viewer.open")
    shown = browser.find_element("id", "viewer").text
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    until(browser, f"viewer.innerText !== {shown!r}")
    browser.find_element("id", "close").click()


def lasso(browser: Any) -> list[int]:
    """Zoom in and draw ever wider squares around the middle of the map, until WANTED images are inside: their rows."""
    visit(browser, "map")
    browser.find_element("id", "lasso").click()
    for _ in range(4):
        browser.find_element("id", "zoom-in").click()
    chart = browser.find_element("id", "canvas")
    for half in range(10, chart.size["height"] // 2, 10):
        if draw_around(browser, chart, half, half) >= WANTED:
            break
    return sorted(browser.execute_script("return [...gallery.selected]"))


def choose(browser: Any, button: str, name: str, text: str) -> None:
    browser.find_element("xpath", f"//*[@id='{name}']/option[text()='{text}']").click()
    browser.find_element("id", button).click()


def members(browser: Any, cluster: int) -> list[int]:
    return sorted(browser.execute_script(f"return store.members({cluster})"))
