"""Trials with differing numbers of clusters in the reports: the tree of each run, and the page of the folder."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import NEEDS_BROWSER, browsing
from photos import PhotoRun, short
from typer.testing import CliRunner

from temi.cache import EmbeddingCache
from temi.cli import app
from temi.pipeline.report.levels import run_levels
from temi.pipeline.report.pages import write_report
from temi.pipeline.report.trials import write_overview
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import set_names
from temi.pipeline.results.thumbnails import THUMBNAILS
from temi.pipeline.runs.trials import train_trials


def needs_browser(test: Callable[..., None]) -> Callable[..., None]:
    for mark in NEEDS_BROWSER:
        test = mark(test)
    return test


NAME = "<b onclick=alert(3)>dark</b> ones"


@pytest.fixture(scope="module")
def trials(photo_run: PhotoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trials with 2, 6 and 3 clusters of the photos, and one that could not be trained; a cluster has a name."""
    folder = tmp_path_factory.mktemp("trials") / "<i>runs"
    settings = ["heads.clusters=2", "heads.clusters=6", "heads.clusters=3"]
    configs = [short(setting, "train.max_skipped=20") for setting in settings]
    train_trials(
        EmbeddingCache.open(photo_run.cache),
        [*configs, short("objective.beta=1e38", "train.max_skipped=20")],
        folder,
    )
    with (folder / "names.csv").open("w") as file:
        csv.writer(file).writerows([["cluster", "name"], ["1", NAME]])
    set_names(folder / "trial-002", folder / "names.csv", 3)
    return folder


def block(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def below(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(deeper for part in node["parts"] for deeper in below(part))]


def test_a_run_shows_where_its_clusters_stand_among_the_others(trials: Path) -> None:
    run = FinishedRun(trials / "trial-002")
    data = block(write_report(run))
    levels = data["levels"]
    assert [(level["trial"], level["clusters"], level["own"]) for level in levels["levels"]] == [
        ("trial-000", 2, False),
        ("trial-002", 3, True),
        ("trial-001", 6, False),
    ]
    nodes = [node for top in levels["top"] for node in below(top)]
    assert sum(node["images"] for node in nodes if node["level"] == 2) == 44
    for depth, trial in enumerate(["trial-000", "trial-002", "trial-001"]):
        table = FinishedRun(trials / trial).assignments
        for node in (node for node in nodes if node["level"] == depth):
            keys = {data["images"]["key"][image] for image in node["typical"]}
            assert keys <= set(table["key"][table["cluster"] == node["id"]])
            assert len(keys) == min(5, node["images"])
    assert {node["name"] for node in nodes if node["level"] == 1} <= {"cluster 0", NAME, "cluster 2"}
    assert (trials / THUMBNAILS).exists()  # made once for all trials
    assert not (trials / "trial-002" / THUMBNAILS).exists()


def test_a_run_that_was_trained_alone_has_no_levels(photo_run: PhotoRun, tmp_path: Path) -> None:
    shutil.copytree(photo_run.run, tmp_path / "run")
    assert run_levels(FinishedRun(tmp_path / "run"), np.zeros((44, 2), np.float32)) is None


def test_the_folder_has_a_page_of_its_own_and_other_commands_say_what_to_type(
    trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = CliRunner().invoke(app, ["report", str(trials), "--out", str(tmp_path / "page.html")])
    assert shown.exit_code == 0, shown.output
    data = block(tmp_path / "page.html")
    assert ["cannot go on" in trial["record"].get("stopped", "") for trial in data["trials"]] == [
        False,
        False,
        False,
        True,
    ]
    assert data["best"] == {}  # no two have one number of clusters
    [tree] = data["trees"]
    assert tree["levels"][0]["clusters"] == 2
    assert (tmp_path / "page.html").read_text().count('class="pictures"') == 1
    for command in (["export", "--out", str(tmp_path / "x.csv")], ["names"]):
        refused = CliRunner().invoke(app, [command[0], str(trials), *command[1:]])
        assert refused.exit_code == 2
        assert f"{trials / 'trial-001'} (heads.clusters=6" in refused.stderr
    moved = tmp_path / "cache"
    cache = FinishedRun(trials / "trial-000").cache.folder
    shutil.copytree(cache, moved)
    (moved / "source.json").unlink()
    write_overview(trials, tmp_path / "without.html", cache=moved)
    assert "does not say where its images are" in block(tmp_path / "without.html")["missing"]
    assert "no pictures: " in capsys.readouterr().err


@needs_browser
def test_the_tree_opens_by_keyboard_and_fits_a_phone(trials: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    write_report(FinishedRun(trials / "trial-000"))
    with browsing(write_overview(trials)) as browser:
        assert browser.find_elements("css selector", "main b[onclick], h1 i") == []
        link = browser.find_element("css selector", "#trials-table a")
        assert link.get_attribute("href") == (trials / "trial-000/report.html").as_uri()
        top = browser.find_element("css selector", ".joining > li > details > summary")
        inner = browser.find_element("css selector", ".joining > li > details > ul")
        assert not inner.is_displayed()
        top.send_keys(Keys.ENTER)
        assert inner.is_displayed()
        browser.find_element("xpath", "//button[text()='Close all']").send_keys(Keys.ENTER)
        assert not inner.is_displayed()
        pictures = browser.find_elements("css selector", ".strip img")
        assert pictures
        assert all(picture.get_attribute("alt") for picture in pictures)
        phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        browser.find_element("xpath", "//button[text()='Open all']").send_keys(Keys.ENTER)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    with browsing(trials / "trial-000/report.html") as browser:
        browser.find_element("css selector", "#tabs a[href='#trials']").send_keys(Keys.ENTER)
        browser.find_element("xpath", "//*[@class='joining']//a[text()='its images']").send_keys(Keys.ENTER)
        assert browser.switch_to.active_element.get_attribute("id") == "cluster-title"
