"""What a person sees of the page in a real Chromium: buttons to read, a phone's width, stacks, counts in words."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import NEEDS_BROWSER, browsing, until, visit
from mixtures import mixture, write_cache
from photos import PhotoRun, short
from serving import serving
from typer.testing import CliRunner

from temi.cli import app
from temi.pipeline.report.pages import write_report
from temi.pipeline.report.trials import write_overview
from temi.pipeline.results.correct import correct
from temi.pipeline.results.corrections import Rename
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.trials import train_trials

pytestmark = NEEDS_BROWSER
LONG = "flowers of the field and of the garden"
# text, ratio of contrast (WCAG) and color of every button in sight that has a ground of its own
BUTTONS = """
const linear = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = (rgb) => { const [r, g, b] = rgb.map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const read = (color) => color.match(/[\\d.]+/g).map(Number);
return [...document.querySelectorAll("button:not(:disabled)")].filter((button) => button.checkVisibility()
  && read(getComputedStyle(button).backgroundColor).length === 3).map((button) => {
  const { color, backgroundColor } = getComputedStyle(button);
  const [a, b] = [color, backgroundColor].map((c) => light(read(c)));
  return [button.textContent, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), color]; });
"""


@pytest.fixture(scope="module")
def run(photo_run: PhotoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(photo_run.run, tmp_path_factory.mktemp("looks") / "run"))
    correct(FinishedRun(folder), [Rename(names={0: LONG})])
    return folder


@pytest.fixture
def browser(run: Path) -> Iterator[Any]:
    page = run / "report.html"
    with browsing(page if page.exists() else write_report(FinishedRun(run))) as driver:
        yield driver


def on_a_phone(browser: Any) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.refresh()
    until(browser, "document.documentElement.dataset.ready")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_enabled_buttons_look_alike_and_can_be_read_on_any_ground(run: Path, tmp_path: Path, scheme: str) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))
    with serving(own) as server, browsing(server.address) as browser:
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
        seen = {}
        for view in ("map", "cluster-0"):
            visit(browser, view)
            seen |= {text: (ratio, color) for text, ratio, color in browser.execute_script(BUTTONS)}
        assert server.edit(action="rename", names={"1": "elsewhere"})[0] == 200
        browser.find_element("id", "undo").click()
        until(browser, "document.querySelector('#said button')")
        seen |= {text: (ratio, color) for text, ratio, color in browser.execute_script(BUTTONS)}
        browser.get_log("browser")  # that the answer was 409
    assert {"Reload", "Split", "Rename", "Merge", "Note", "Lasso", "+", "Whole map", "Undo"} <= seen.keys()
    assert min(ratio for ratio, _ in seen.values()) > 4.5
    assert {color for _, color in seen.values()} == {seen["Rename"][1]}


def test_on_a_phone_the_tab_of_a_view_is_in_sight(browser: Any) -> None:
    on_a_phone(browser)
    for view in ("about", "unusual", "clusters"):
        visit(browser, view)
        tab = browser.execute_script("return document.querySelector('#tabs [aria-current]').getBoundingClientRect()")
        assert tab["left"] >= 0, view
        assert tab["right"] <= 390, view
        assert browser.execute_script("return scrollY") == 0


def test_on_a_phone_the_tree_has_names_to_read_and_pictures_in_sight(browser: Any) -> None:
    on_a_phone(browser)
    visit(browser, "tree")
    until(browser, "document.querySelector('.merge-tree img')")
    assert (
        browser.execute_script("const tree = shared.byId('merge-tree'); return tree.scrollWidth - tree.clientWidth")
        == 0
    )
    rows = browser.find_elements("css selector", ".merge-tree li")
    assert rows
    for row in rows:
        name, picture = row.find_element("tag name", "a"), row.find_element("tag name", "img")
        assert picture.rect["x"] + picture.rect["width"] <= 390 - 12
        assert name.rect["width"] >= (100 if name.text == LONG else 60)
        cut = browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", name)
        assert not cut, name.text


def test_a_stack_is_selected_and_removed_as_a_whole(browser: Any) -> None:
    cluster, stack = browser.execute_script(
        "for (const c of store.clusters()) { const list = store.sorted(store.members(c), 'typical');"
        " for (const [, all] of store.folded(list)) if (all.length > 1) return [c, all]; }"
    )
    visit(browser, f"cluster-{cluster}")
    cell = browser.find_element("css selector", f"#members li[data-image='{stack[0]}']")
    mark = cell.find_element("tag name", "input")
    assert mark.get_attribute("ariaLabel").endswith(
        f" and {len(stack) - 1} near-duplicate{'s' if len(stack) > 2 else ''}"
    )
    picked = browser.find_element("id", "picked")
    cell.find_element("tag name", "button").send_keys("x")
    assert picked.text == f"{len(stack)} selected"
    browser.execute_script(f"gallery.select([{stack[1]}], false)")
    assert mark.get_property("indeterminate")
    assert not mark.is_selected()
    browser.execute_script("arguments[0].click()", mark)
    assert picked.text == f"{len(stack)} selected"
    cell.find_element("tag name", "button").click()
    large = browser.find_element("id", "large-select")
    assert large.is_selected()
    assert "near-duplicate" in browser.find_element("id", "large-stack").text
    large.click()
    assert browser.execute_script("return gallery.selected.size") == 0
    large.click()
    assert browser.execute_script("return gallery.selected.size") == len(stack)
    browser.find_element("id", "close").click()
    browser.find_element("id", "remove").click()
    until(browser, f"store.removed === {len(stack)}")
    assert browser.find_element("id", "said").text == f"{len(stack)} images removed from all clusters."


def test_one_is_one_image(browser: Any) -> None:
    visit(browser, "cluster-0")
    browser.execute_script("gallery.select([store.members(0)[0]]); shared.byId('remove').click()")
    until(browser, "store.removed === 1")
    assert browser.find_element("id", "said").text == "1 image removed from all clusters."
    browser.execute_script("gallery.select(store.members(0).slice(1)); shared.byId('remove').click()")
    until(browser, "store.size(0) === 1")
    assert "cluster 0, 1 image, mean" in browser.find_element("id", "cluster-facts").text
    visit(browser, "clusters")
    assert browser.find_element("css selector", "[data-cluster='0'] a").get_attribute("textContent").endswith("1 image")
    assert browser.execute_script("return [0, 1, 2, 1000].map((n) => shared.counted(n, 'image'))") == [
        "0 images",
        "1 image",
        "2 images",
        "1,000 images",
    ]


@pytest.mark.parametrize("labeled", [True, False])
def test_trials_stand_against_labels_where_there_are_some(tmp_path: Path, labeled: bool) -> None:
    embedding, label = mixture(rows=80)
    cache = write_cache(tmp_path / "cache", embedding, label if labeled else None)
    runs = tmp_path / "runs"
    train_trials(cache, [short("heads.clusters=2"), short("heads.clusters=3")], runs)
    done = CliRunner().invoke(app, ["evaluate", str(runs)])
    assert done.exit_code == 0, done.output
    write_report(FinishedRun(runs / "trial-001"))
    with browsing(write_overview(runs)) as browser:
        assert browser.find_element("id", "labels").is_displayed() == labeled
        assert browser.find_element("id", "to-labels").is_displayed() == labeled
        assert browser.find_element("id", "made").text == "2 trials on 80 images."
        [link] = browser.find_elements("css selector", "#trials-table th[scope=row] a")
        assert link.text == "trial-001"
        assert "underline" in link.value_of_css_property("text-decoration")
        assert link.value_of_css_property("color") != browser.find_element("tag name", "h1").value_of_css_property(
            "color"
        )
        assert "temi report RUNS/trial-000 writes it" in browser.find_element("id", "trials-table").text
