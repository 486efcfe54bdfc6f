"""What a person sees of the page in a real Chromium: buttons to read, a phone's width, stacks, counts in words."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
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
from temi.pipeline.results.corrections import Move, Rename
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


@pytest.mark.parametrize("served", [False, True])
def test_what_was_removed_is_seen_and_put_back_and_the_tree_keeps_up(run: Path, tmp_path: Path, served: bool) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))
    keys = FinishedRun(own).trained["key"].tolist()
    correct(FinishedRun(own), [Move(keys=keys[:5], to=3), Move(keys=keys[5:9], to=4)])
    with ExitStack() as open_now:
        page = open_now.enter_context(serving(own)).address if served else write_report(FinishedRun(own))
        browser = open_now.enter_context(browsing(page))
        walk_through_the_removed(browser)
        walk_through_the_tree(browser)


def text(browser: Any, name: str) -> str:
    return str(browser.find_element("id", name).text)


def leaves(browser: Any) -> list[str]:
    """What stands at the tips of the tree."""
    visit(browser, "tree")
    return [row.text for row in browser.find_elements("css selector", ".merge-tree li > a")]


def walk_through_the_removed(browser: Any) -> None:
    tab = browser.find_element("css selector", "#tabs a[href='#removed']")
    assert not tab.is_displayed()
    visit(browser, "cluster-3")
    browser.execute_script("gallery.select(store.members(3)); shared.byId('remove').click()")
    until(browser, "location.hash === '#clusters' && store.removed > 0")  # an empty cluster has no page
    count = browser.execute_script("return store.removed")
    assert tab.text == f"Removed {count}"
    browser.find_element("id", "search").send_keys("remov")
    browser.find_element("css selector", "#found a").click()
    until(browser, "location.hash === '#removed'")
    browser.execute_script("shared.byId('search').value = ''")
    assert tab.get_attribute("aria-current") == "page"
    assert f"A person took {count} images out of all clusters" in text(browser, "removed-text")
    assert len(browser.find_elements("css selector", "#removed-images li")) == count
    browser.find_element("css selector", "#removed-images .open").click()
    until(browser, "document.querySelectorAll('#similar img').length")
    assert text(browser, "facts").startswith("cluster\nremoved: a person took it out of all clusters")
    assert not re.search("confidence|second|%", text(browser, "facts"))
    place = text(browser, "large-place")
    browser.find_element("id", "next").click()
    assert text(browser, "large-place") != place == f"1 of {count}"
    link = browser.find_element("css selector", "#facts a")
    assert link.get_attribute("href").endswith("#removed")
    link.click()
    until(browser, "!viewer.open && location.hash === '#removed'")
    browser.find_element("id", "all-removed").click()
    browser.find_element("xpath", "//*[@id='move-to']/option[text()='a new cluster']").click()
    browser.find_element("id", "move").click()
    until(browser, f"store.size(5) === {count}")
    assert not tab.is_displayed()
    assert browser.execute_script("return location.hash") == "#clusters"


def walk_through_the_tree(browser: Any) -> None:
    whole = browser.execute_script("return store.data.tree.leaves.map(store.name)")
    assert leaves(browser) == [name for name in whole if name != "cluster 3"]
    assert text(browser, "beside-tree").startswith("Made since, and not in this tree: cluster 5 (")
    browser.find_element("id", "undo").click()
    browser.find_element("id", "undo").click()
    until(browser, "store.removed === 0")
    assert leaves(browser) == whole
    assert text(browser, "beside-tree") == ""
    visit(browser, "cluster-0")
    browser.find_element("css selector", "#merge-with option[value='4']").click()
    browser.find_element("id", "merge").click()
    until(browser, "store.state.merged.has(4)")
    assert leaves(browser) == [name for name in whole if name != "cluster 4"]
    browser.execute_script("store.edit({ action: 'merge', clusters: store.clusters() })")
    until(browser, "store.clusters().length === 1")
    assert leaves(browser) == []
    assert text(browser, "merge-tree") == "Only one cluster of this tree is left."


def test_addresses_parts_and_names_that_cannot_be_are_said(run: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))

    def said(words: str) -> None:
        until(browser, f"said.innerText.includes({words!r})")

    with serving(own) as server, browsing(f"{server.address}#cluster-99") as browser:
        said("There is no cluster 99.")
        for wrong, words in {
            "cluster-98": "no cluster 98",
            "cluster--1": "",
            "constructor": "",
            "removed": "No image is",
        }.items():
            visit(browser, wrong)
            assert browser.execute_script("return location.hash") == "#clusters"
            said(words)
        visit(browser, "cluster-1")
        parts = browser.find_element("id", "parts")
        for many in ("1", "", "51", "2.5"):
            parts.clear()
            parts.send_keys(many)
            browser.execute_script("shared.byId('said').textContent = ''")
            browser.find_element("id", "split").click()
            said("A cluster is split into 2 to 50 parts.")
        name = browser.find_element("id", "name")
        for wrong in ("Removed", "cluster 2"):
            name.clear()
            name.send_keys(wrong)
            browser.execute_script("shared.byId('said').textContent = ''")
            browser.find_element("css selector", "#rename button").click()
            said("cannot be the name")
        assert server.edit(action="note", cluster=0, text="elsewhere")[0] == 200
        name.clear()
        name.send_keys("tulips")
        browser.find_element("css selector", "#rename button").click()
        until(browser, "document.querySelector('#said button')")
        browser.find_element("css selector", "#said button").click()
        until(browser, "document.documentElement.dataset.ready && store.state.notes.length === 1")
        browser.get_log("browser")  # that the answer was 409
        assert browser.find_element("id", "name").get_attribute("value") == "tulips"
        browser.find_element("css selector", "#rename button").click()
        until(browser, "store.name(1) === 'tulips'")
        browser.refresh()
        until(browser, "document.documentElement.dataset.ready")
        browser.get_log("browser")  # that the heading has the focus and not the viewer
        assert browser.find_element("id", "name").get_attribute("value") == "tulips"


def test_equal_means_equal_in_what_the_encoder_sees(browser: Any) -> None:
    visit(browser, "duplicates")
    lead = browser.find_element("css selector", "[data-view=duplicates] .lead").text
    assert "equal in what the encoder sees, the middle of an image at one size" in lead
    assert "edges and sizes may differ" in lead
    fit = "return getComputedStyle(document.querySelector('#duplicate-groups .open img')).objectFit"
    assert browser.execute_script(fit) == "contain"
    browser.execute_script(
        "const [a, b] = [...store.images.key.keys()]; store.images.group.fill(-1); store.images.exact.fill(-1);"
        "store.images.group[a] = store.images.group[b] = store.images.exact[a] = store.images.exact[b] = 0;"
    )
    visit(browser, "unsure")
    visit(browser, "duplicates")
    assert "2 equal to the encoder, in " in browser.find_element("id", "duplicate-groups").text


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
