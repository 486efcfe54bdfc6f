"""The page in a real headless Chromium: a file and a server, look and correct, by pointer and by keyboard."""

import csv
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import NEEDS_BROWSER, browsing, draw_around, until, visit
from photos import PhotoRun, short
from serving import serving
from tiny_clip import write_clip

from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.report.pages import write_report
from temi.pipeline.results.correct import correct, read_file
from temi.pipeline.results.corrections import REMOVED, Rename
from temi.pipeline.results.find import Finder
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import set_names
from temi.pipeline.runs.train import train_heads

pytestmark = NEEDS_BROWSER
NAMELESS = """return [...document.querySelectorAll('input,select,button,a[href]')].filter((e) => !e.labels?.length
    && !e.textContent && !e.ariaLabel && !e.querySelector('img[alt]:not([alt=""])')).map((e) => e.outerHTML)"""
NAME = "<b onclick=alert(3)>red</b> ones"


@pytest.fixture(scope="module")
def run(photo_run: PhotoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(photo_run.run, folder)
    with (folder / "names.csv").open("w") as file:
        csv.writer(file).writerows([["cluster", "name"], ["0", NAME]])
    set_names(folder, folder / "names.csv", 3)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return write_report(FinishedRun(run))


@pytest.fixture
def browser(page: Path, tmp_path: Path) -> Iterator[Any]:
    with browsing(page.as_uri(), downloads=tmp_path) as driver:
        yield driver


def clusters(browser: Any) -> list[str]:
    return [tile.get_attribute("data-cluster") for tile in browser.find_elements("css selector", "#mosaic > li")]


def assigned(browser: Any) -> list[int]:
    return browser.execute_script("return [...store.state.cluster]")


def move_to_a_new_cluster(browser: Any) -> None:
    browser.find_element("xpath", "//*[@id='move-to']/option[text()='a new cluster']").click()
    browser.find_element("id", "move").click()


def save(browser: Any, downloads: Path) -> Path:
    """Save the corrections of a page from a file; the file that the page says it made."""
    browser.find_element("id", "save").click()
    said = browser.find_element("id", "said").text
    found = re.search(r"temi correct RUN (\S+\.jsonl) ", said)
    assert found, said
    saved = downloads / found[1]
    deadline = time.monotonic() + 20
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return saved


def lasso(browser: Any) -> int:
    """Draw around everything; how many images are selected then."""
    visit(browser, "map")
    browser.find_element("id", "lasso").click()
    chart = browser.find_element("id", "canvas")
    return draw_around(browser, chart, chart.size["width"] // 2 - 3, chart.size["height"] // 2 - 3)


def test_the_first_screen_is_pictures_and_no_name_is_markup(browser: Any) -> None:
    assert clusters(browser)[0] == "0"
    assert browser.find_element("css selector", "#mosaic b").text == NAME
    assert browser.find_elements("css selector", "main b b, img[src=x], main [onclick]") == []
    pictures = browser.find_elements("css selector", "#mosaic img")
    assert len(pictures) >= 3
    browser.execute_script("arguments[0].scrollIntoView()", pictures[0])
    until(browser, "document.querySelector('#mosaic img').naturalWidth > 0")
    assert not browser.find_element("id", "tabs").find_elements("css selector", "[aria-current]")[1:]


def test_search_finds_clusters_and_images_and_says_when_it_finds_none(browser: Any) -> None:
    search = browser.find_element("id", "search")
    search.send_keys("RED</b>")
    assert clusters(browser) == ["0"]
    search.clear()
    search.send_keys("onerror=alert")
    assert len(browser.find_elements("css selector", "#named-images li")) == 1
    search.clear()
    search.send_keys("no such thing")
    assert clusters(browser) == []
    assert "Nothing fits" in browser.find_element("id", "named-images").text


def test_an_image_opens_large_and_the_arrow_keys_go_on(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    visit(browser, "cluster-0")
    first = browser.find_element("css selector", "#members .open")
    first.send_keys(Keys.ENTER)
    name = browser.find_element("id", "large-name").text
    assert browser.find_element("id", "viewer").get_attribute("open")
    assert NAME in browser.find_element("id", "facts").text
    assert len(browser.find_elements("css selector", "#similar img")) == 5
    active = browser.switch_to.active_element
    active.send_keys(Keys.ARROW_RIGHT)
    other = browser.find_element("id", "large-name").text
    assert other != name
    active.send_keys(Keys.ARROW_LEFT)
    assert browser.find_element("id", "large-name").text == name
    active.send_keys("x")
    stack = browser.execute_script(
        "const list = store.sorted(store.members(0), 'typical'); return store.folded(list)[0][1].sort()"
    )
    assert browser.execute_script("return [...gallery.selected].sort()") == stack
    active.send_keys(Keys.ESCAPE)
    assert not browser.find_element("id", "viewer").get_attribute("open")
    assert browser.find_element("id", "selection").is_displayed()


def test_an_address_leads_to_the_top_of_its_view(browser: Any) -> None:
    for view in ("map", "duplicates", "unsure", "unusual", "about", "cluster-0"):
        browser.execute_script("scrollTo(0, 500)")
        browser.execute_script(f"location.hash = '{view}'")
        until(browser, f"!document.querySelector('[data-view={view.split('-')[0]}]').hidden && scrollY === 0")
        ids = browser.execute_script(f"return document.querySelectorAll('[id={view.split('-')[0]}]').length")
        assert ids == 0, "a browser scrolls to the element that is called like the address"


def test_a_chosen_cluster_keeps_its_color(browser: Any) -> None:
    visit(browser, "map")
    browser.execute_script("[0, 1, 2].forEach(map.choose)")
    before = browser.execute_script("return [...map.chosen]")
    browser.find_element("css selector", "#chosen .chip").click()
    browser.execute_script("map.choose(0)")
    assert sorted(browser.execute_script("return [...map.chosen]")) == before
    assert len({color for _, color in before}) == 3


def test_members_are_sorted_and_the_grid_walks_by_arrow_keys(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    visit(browser, "cluster-0")
    browser.find_element("css selector", "#order option[value=name]").click()
    keys = browser.execute_script(
        "return [...document.querySelectorAll('#members li')].map(i => store.images.key[i.dataset.image])"
    )
    assert keys == sorted(
        keys, key=lambda key: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
    )
    first, second = browser.find_elements("css selector", "#members .open")[:2]
    first.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element == second


def test_a_file_saves_what_was_corrected_and_the_run_takes_it(browser: Any, page: Path, tmp_path: Path) -> None:
    assert lasso(browser) == 44
    assert browser.execute_script("return document.querySelectorAll('#lassoed-images li').length") == 44
    browser.find_element("id", "clear").click()
    visit(browser, "cluster-0")
    browser.execute_script("gallery.select(store.members(0).slice(0, 4))")
    move_to_a_new_cluster(browser)
    browser.execute_script("gallery.select([store.members(0)[0]]); document.getElementById('remove').click()")
    until(browser, "store.state.cluster.includes(-1)")
    browser.find_element("id", "undo").click()
    browser.find_element("id", "redo").click()
    shown = assigned(browser)
    assert shown.count(3) == 4
    assert shown.count(REMOVED) == 1
    saved = save(browser, tmp_path)
    finished = FinishedRun(shutil.copytree(page.parent, tmp_path / "run"))
    correct(finished, read_file(saved))
    assert finished.corrected.cluster.tolist() == shown


def test_what_was_saved_is_not_saved_again(browser: Any, page: Path, tmp_path: Path) -> None:
    def remove_one() -> None:
        browser.execute_script("gallery.select([store.members(0)[0]]); document.getElementById('remove').click()")

    visit(browser, "cluster-0")
    remove_one()
    until(browser, "store.removed === 1")
    first = save(browser, tmp_path)
    assert not browser.find_element("id", "save").is_displayed()
    browser.find_element("id", "undo").click()
    remove_one()
    remove_one()
    until(browser, "store.removed === 2")
    assert browser.find_element("id", "save").is_displayed()
    second = save(browser, tmp_path)
    assert [entry.action for entry in read_file(first)] == ["remove"]
    assert [entry.action for entry in read_file(second)] == ["undo", "remove", "remove"]
    finished = FinishedRun(shutil.copytree(page.parent, tmp_path / "run"))
    correct(finished, read_file(first))
    correct(finished, read_file(second))
    assert finished.corrected.cluster.tolist() == assigned(browser)
    second.unlink()
    browser.find_element("xpath", "//*[@id='said']/button").click()
    deadline = time.monotonic() + 20
    while not second.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(read_file(second)) == 3


def test_by_keyboard_a_cluster_is_chosen_first_and_acted_on_then(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    visit(browser, "cluster-0")
    browser.find_element("id", "merge").click()
    assert browser.find_element("id", "said").text == "Choose a cluster first."
    merge = browser.find_element("id", "merge-with")
    merge.send_keys(Keys.ARROW_DOWN)
    merge.send_keys("c")
    browser.execute_script("gallery.select(store.members(0).slice(0, 4))")
    move = browser.find_element("id", "move-to")
    move.send_keys(Keys.ARROW_DOWN)
    assert move.get_attribute("value") == "3"
    assert browser.execute_script("return store.unsaved") == 0
    move.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    until(browser, "store.size(3) === 4 && store.unsaved === 1")
    assert browser.find_element("id", "move-to").get_attribute("value") == ""
    merge = browser.find_element("id", "merge-with")
    merge.send_keys(Keys.ARROW_DOWN)
    other = int(merge.get_attribute("value"))
    merge.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    until(browser, f"store.state.merged.has({other}) && store.unsaved === 2")


def test_about_counts_what_was_corrected_and_says_what_is_as_trained(browser: Any) -> None:
    def tiles() -> dict[str, str]:
        found = browser.find_elements("css selector", "#tiles > div")
        return {tile.find_element("tag name", "dt").text: tile.find_element("tag name", "dd").text for tile in found}

    def bars() -> str:
        return browser.find_element("id", "sizes").text

    used = browser.execute_script("return store.clusters()")
    visit(browser, "about")
    before = tiles()
    assert before["removed"] == "0"
    assert before["clusters used, as trained"] == f"{len(used)} of 3"
    assert {"sizes, as trained", "mean confidence, as trained"} < before.keys()
    assert len(browser.find_elements("css selector", "#sizes rect")) == len(used)
    assert not browser.find_element("id", "since").is_displayed()
    browser.execute_script(f"gallery.select(store.members({used[0]})); document.getElementById('remove').click()")
    until(browser, "store.removed > 0")
    removed = browser.execute_script("return store.removed")
    assert tiles() == {**before, "removed": str(removed)}
    assert f"{removed} removed" in browser.find_element("id", "made").text
    assert len(browser.find_elements("css selector", "#sizes rect")) == len(used) - 1
    assert f"cluster {used[1]}" in bars()
    assert browser.find_element("id", "since").is_displayed()
    browser.execute_script(
        "gallery.select(store.clusters().flatMap(store.members)); document.getElementById('remove').click()"
    )
    until(browser, "store.removed === 44")
    assert bars() == "No image is left in any cluster."
    assert not re.search("Infinity|undefined|NaN", browser.find_element("tag name", "main").text)
    browser.find_element("id", "undo").click()
    assert len(browser.find_elements("css selector", "#sizes rect")) == len(used) - 1
    assert len(browser.find_elements("css selector", "#histogram svg")) == 1


@pytest.mark.long
def test_a_page_that_has_not_seen_every_correction_changes_nothing(photo_run: PhotoRun, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    run = Path(shutil.copytree(photo_run.run, tmp_path / "run"))
    keys = FinishedRun(run).trained["key"].tolist()
    with serving(run) as server, browsing(server.address) as browser:
        visit(browser, "cluster-0")
        assert server.edit(action="move", keys=keys[:3], to=3)[0] == 200  # another tab
        browser.execute_script("gallery.select(store.members(0).slice(5, 7))")
        move_to_a_new_cluster(browser)
        until(browser, "said.innerText.includes('the corrections changed elsewhere; reload the page')")
        assert browser.execute_script("return gallery.selected.size") == 2
        assert len(FinishedRun(run).corrections) == 1
        browser.find_element("xpath", "//*[@id='said']/button").click()
        until(browser, "document.documentElement.dataset.ready && store.state.clusters === 4")
        browser.get_log("browser")  # that an answer was 409, and that the heading has the focus and not the viewer
        assert browser.execute_script("return store.size(3)") == 3
        browser.find_element("id", "undo").click()
        until(browser, "!store.size(3)")
        split = browser.find_element("id", "split")
        ActionChains(browser).double_click(split).perform()
        until(browser, "store.since === 2")
        slow = "arguments[0].dispatchEvent(new MouseEvent('click', {detail: 2}))"  # after the answer to the first
        browser.execute_script(slow, split)
        time.sleep(0.5)
        assert browser.execute_script("return store.since") == 2
        browser.execute_script("arguments[0].click(); arguments[0].click()", split)
        until(browser, "store.since === 3")
        time.sleep(0.5)
        assert "is split" in browser.find_element("id", "said").text
    assert [entry.action for entry in FinishedRun(run).corrections] == ["move", "undo", "split", "split"]


def test_the_keyboard_reaches_everything_and_everything_has_a_name(browser: Any) -> None:
    for view in ("clusters", "cluster-0", "map", "duplicates", "unsure", "unusual", "about"):
        visit(browser, view)
        assert browser.execute_script(NAMELESS) == [], view
        if "-" in view:
            assert browser.switch_to.active_element.get_attribute("id") == "cluster-title"


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_light_and_dark(browser: Any, dark: bool) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.refresh()
    for view in ("clusters", "cluster-0", "map", "duplicates", "unusual", "about"):
        visit(browser, view)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360, view
    ground, ink = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ground, ink)]
    assert (brightness[0] < brightness[1]) == dark
    assert abs(brightness[0] - brightness[1]) > 400


def test_print_has_a_page_for_each_cluster(browser: Any) -> None:
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert len(browser.find_elements("css selector", "#print section")) == len(clusters(browser))
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.find_elements("css selector", "#print section") == []


@pytest.mark.long
def test_a_served_page_keeps_every_correction_through_a_kill(photo_run: PhotoRun, tmp_path: Path) -> None:
    run = shutil.copytree(photo_run.run, tmp_path / "run")
    with serving(run, "--backbone", photo_run.weights) as server, browsing(server.address) as browser:
        assert lasso(browser) == 44
        browser.execute_script("gallery.select([...gallery.selected].slice(30), false)")
        move_to_a_new_cluster(browser)
        until(browser, "store.state.clusters === 4")
        visit(browser, "cluster-3")
        browser.find_element("id", "name").send_keys("mine")
        browser.find_element("css selector", "#rename button").click()
        until(browser, "store.name(3) === 'mine'")
        browser.find_element("css selector", "#members .open").click()
        until(browser, "document.getElementById('large').naturalWidth === 200")
        browser.find_element("id", "close").click()
        browser.find_element("id", "picture").send_keys(str(photo_run.photos / "red/2.jpg"))
        until(browser, "location.hash === '#like' && document.querySelectorAll('#like-images li').length === 44")
        assert "red/2.jpg" in browser.find_element("css selector", "#like-images img").get_attribute("alt")
        visit(browser, "cluster-3")
        browser.find_element("id", "split").click()
        until(browser, "store.state.clusters === 5")
        browser.find_element("css selector", "#merge-with option[value='4']").click()
        browser.find_element("id", "merge").click()
        until(browser, "store.state.merged.has(4)")
        browser.find_element("id", "undo").click()
        until(browser, "!store.state.merged.has(4)")
        shown = assigned(browser)
        server.kill()
        browser.find_element("id", "undo").click()
        until(browser, "document.getElementById('said').textContent.includes('does not answer')")
        assert assigned(browser) == shown
        browser.get_log("browser")  # that the server is gone
    finished = FinishedRun(run)
    assert finished.corrected.cluster.tolist() == shown
    with serving(run) as server, browsing(server.address) as browser:
        assert assigned(browser) == shown
        assert browser.execute_script("return store.name(3)") == "mine"
        browser.find_element("id", "redo").click()
        until(browser, "store.state.merged.has(4)")
        assert server.edit(action="rename", names={"0": "mine"})[0] == 400
    assert isinstance(FinishedRun(run).corrections[1], Rename)
    assert json.loads((run / "corrections.jsonl").read_text().splitlines()[-1])["action"] == "redo"


@pytest.mark.long
def test_words_find_images_where_clip_made_the_cache(photo_run: PhotoRun, tmp_path: Path) -> None:
    weights = write_clip(tmp_path / "weights")
    settings = EmbedConfig(backbone=str(weights), views=0, batch_size=8, workers=0, device="cpu")
    train_heads(embed(str(photo_run.photos), tmp_path / "cache", settings), short(), tmp_path / "run")
    found = Finder(FinishedRun(tmp_path / "run"), str(weights), "cpu").described("a photo of red")
    keys = FinishedRun(tmp_path / "run").trained["key"]
    with serving(tmp_path / "run", "--backbone", weights) as server, browsing(server.address) as browser:
        browser.find_element("id", "search").send_keys("a photo of red")
        button = browser.find_element("id", "described")
        assert "a photo of red" in button.text
        button.click()
        until(browser, "location.hash === '#like' && document.querySelectorAll('#like-images li').length > 0")
        first = browser.find_element("css selector", "#like-images img").get_attribute("alt")
        assert keys[found[0]] in first
