"""A real headless Chromium for the tests of pages."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]
NEEDS_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="apt-get install chromium chromium-driver"),
    pytest.mark.skipif(importlib.util.find_spec("selenium") is None, reason="pip install selenium"),
    pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning"),
]


@contextmanager
def browsing(page: Path | str, downloads: Path | None = None) -> Iterator[Any]:
    """A browser on `page`, a file or an address, which must have had nothing to complain of in the end."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in [*FLAGS, "--window-size=1280,1000"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)} if downloads else {})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.get(page if isinstance(page, str) else page.as_uri())
        WebDriverWait(driver, 60).until(lambda d: d.execute_script("return document.documentElement.dataset.ready"))
        yield driver
        complaints = [line for line in driver.get_log("browser") if "GPU stall" not in line["message"]]
        assert complaints == [], complaints
    finally:
        driver.quit()


def until(browser: Any, script: str) -> None:
    """Wait until what `script` returns is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 90).until(lambda driver: driver.execute_script(f"return {script}"))


def visit(browser: Any, view: str) -> None:
    browser.execute_script(f"location.hash = '#{view}'; dispatchEvent(new Event('hashchange'))")


def draw_around(browser: Any, chart: Any, wide: int, high: int) -> int:
    """Draw a rectangle around the middle of `chart`, by half its sides; how many images are selected then."""
    from selenium.webdriver.common.action_chains import ActionChains

    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    pointer = ActionChains(browser, duration=20).move_to_element_with_offset(chart, -wide, -high).click_and_hold()
    for x, y in ((2 * wide, 0), (0, 2 * high), (-2 * wide, 0)):
        pointer.move_by_offset(x, y)
    pointer.release().perform()
    return int(browser.execute_script("return gallery.selected.size"))
