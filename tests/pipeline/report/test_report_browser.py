"""The report in a real headless Chromium: it loads without a complaint, filters, points, and fits a phone."""

import base64
import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import NEEDS_BROWSER, browsing
from photos import PhotoRun

from temi.pipeline.report.pages import write_report
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import set_names

pytestmark = NEEDS_BROWSER
NAME = "<b onclick=alert(3)>red</b> ones"


@pytest.fixture(scope="module")
def page(photo_run: PhotoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(photo_run.run, folder)
    with (folder / "names.csv").open("w") as file:
        csv.writer(file).writerows([["cluster", "name"], ["1", NAME]])
    set_names(folder, folder / "names.csv", 3)
    return write_report(FinishedRun(folder))


@pytest.fixture
def browser(page: Path) -> Iterator[Any]:
    with browsing(page) as driver:
        yield driver


def visible_cards(browser: Any) -> list[str]:
    return [card.get_attribute("id") for card in browser.find_elements("css selector", "#cards > li")]


def place_on_map(browser: Any, image: int) -> tuple[float, float]:
    """Offset of an image's point from the middle of the map, in pixels."""
    script = """
        const map = document.getElementById("map"), axes = map._fullLayout, trace = map.data[0];
        map.scrollIntoView({block: "center", behavior: "instant"});
        const x = axes.xaxis._offset + axes.xaxis.l2p(trace.x[arguments[0]]);
        const y = axes.yaxis._offset + axes.yaxis.l2p(trace.y[arguments[0]]);
        return [x - map.clientWidth / 2, y - map.clientHeight / 2];"""
    x, y = browser.execute_script(script, image)
    return x, y


def test_it_shows_every_cluster_and_no_markup_of_a_name(browser: Any) -> None:
    assert visible_cards(browser) == ["cluster-0", "cluster-1", "cluster-2"]
    assert browser.find_element("css selector", "#cluster-1 h3").text == NAME
    assert browser.find_elements("css selector", "main b, img[src=x], [onclick]") == []
    pictures = browser.find_elements("css selector", "#cards img")
    assert pictures
    for picture in pictures:
        assert picture.get_attribute("alt")
        assert 0 < int(picture.get_property("naturalWidth")) <= 96
    assert "44" in browser.find_element("id", "tiles").text


def test_search_and_sort(browser: Any, page: Path) -> None:
    search = browser.find_element("id", "search")
    search.send_keys("RED</b>")
    assert visible_cards(browser) == ["cluster-1"]
    assert browser.find_element("id", "found").text == "1 of 3 clusters"
    search.clear()
    search.send_keys("onerror=alert")
    assert len(visible_cards(browser)) == 1
    search.clear()
    search.send_keys("no such thing")
    assert visible_cards(browser) == []
    browser.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", search)
    browser.find_element("css selector", "#sort option[value=small]").click()
    assert visible_cards(browser) == ["cluster-2", "cluster-1", "cluster-0"]


def test_pointing_at_an_image_shows_it_and_a_click_singles_out_its_cluster(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    far = max(range(44), key=lambda i: data["images"]["x"][i] + data["images"]["y"][i])  # no other lies on it
    x, y = place_on_map(browser, far)
    chart = browser.find_element("id", "map")
    pointer = ActionChains(browser)
    pointer.move_to_element_with_offset(chart, round(x) - 3, round(y)).move_by_offset(3, 0).perform()
    tip = browser.find_element("id", "tip")
    WebDriverWait(browser, 20).until(lambda _: tip.is_displayed())
    image = int(tip.get_attribute("data-image"))
    same_place = [abs(data["images"][axis][image] - data["images"][axis][far]) < 0.05 for axis in "xy"]
    assert all(same_place)
    assert data["images"]["key"][image] in tip.text
    source = tip.find_element("css selector", "img").get_attribute("src")
    assert base64.b64decode(source.partition(",")[2]) == base64.b64decode(data["images"]["picture"][image])
    cluster = data["images"]["cluster"][image]
    pointer.click().perform()
    single = browser.find_element("id", "single")
    WebDriverWait(browser, 20).until(lambda _: single.get_property("value") == str(cluster))
    selected = browser.execute_script("return document.getElementById('map').data[0].selectedpoints")
    assert selected == [i for i, c in enumerate(data["images"]["cluster"]) if c == cluster]
    assert "picked" in browser.find_element("id", f"cluster-{cluster}").get_attribute("class")


def test_the_keyboard_reaches_a_cluster_and_the_map(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    button = browser.find_element("css selector", "#cluster-0 .actions button")
    assert button.text == "Show on the map"
    button.send_keys(Keys.ENTER)
    assert browser.find_element("id", "single").get_property("value") == "0"
    assert browser.switch_to.active_element.get_attribute("id") == "single"
    browser.find_element("id", "to-card").send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "cluster-0"
    unnamed = "[...document.querySelectorAll('input,select,button')].filter(e => !e.labels?.length && !e.textContent)"
    assert browser.execute_script(f"return {unnamed}.filter(e => !e.closest('.js-plotly-plot')).length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_light_and_dark(browser: Any, dark: bool) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.refresh()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    ground, ink = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ground, ink)]
    assert (brightness[0] < brightness[1]) == dark
    assert abs(brightness[0] - brightness[1]) > 400
