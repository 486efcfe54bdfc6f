"""The served page in a real Chromium: first paint, and what a person does, in wall time and in time of its main thread.

    python benchmarks/page.py RUN [--results page.jsonl]
    python benchmarks/page.py --synthetic 50000 --folder FOLDER [--results page.jsonl]

RUN is a finished run; corrections are made in a copy. Needs chromium, chromedriver and selenium. Wall time is from the
action to the second frame after it; time of the main thread is processor time (CDP's threadTicks) and holds on a busy
machine, too. Without a GPU the map is drawn by software.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from synthetic import make_manifest, write_cache

from temi.pipeline.config import load_config
from temi.pipeline.runs.train import train_heads

TEMI = Path(sys.executable).with_name("temi")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"]
DIM, CLUSTERS = 64, 200
FRAMES = "const done = arguments[arguments.length - 1], frame = requestAnimationFrame; const start = performance.now();"
PAINTED = "frame(() => frame(() => done(performance.now() - start)));"
VISIT = "location.hash = '{}'; dispatchEvent(new Event('hashchange'));"
# Name, script that gets ready, script that is timed, and what must be so in the end, also on the server.
ACTIONS = [
    ("open a cluster", "", VISIT.format("#cluster-0"), ""),
    ("sort it by name", "", "order.value = 'name'; order.dispatchEvent(new Event('change'));", ""),
    ("open an image large", "", "document.querySelector('#members .open').click();", ""),
    ("the next image", "", "next.click();", ""),
    ("close it", "", "viewer.close();", ""),
    ("all clusters", "", VISIT.format("#clusters"), ""),
    ("search by name", "", "search.value = '7'; search.dispatchEvent(new Event('input'));", ""),
    ("search nothing", "", "search.value = ''; search.dispatchEvent(new Event('input'));", ""),
    ("the map", "", VISIT.format("#map"), ""),
    ("color a cluster", "", "single.value = '3'; single.dispatchEvent(new Event('change'));", ""),
    ("zoom", "", "document.getElementById('zoom-in').click();", ""),
    ("pan", "", "canvas.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}));", ""),
    ("unsure images", "", VISIT.format("#unsure"), ""),
    ("unusual images", "", VISIT.format("#unusual"), ""),
    ("duplicates", "", VISIT.format("#duplicates"), ""),
    ("select 30", VISIT.format("#cluster-0"), "gallery.select(store.members(0).slice(0, 30));", ""),
    (
        "move them",
        "",
        "move('move-to', store.state.clusters);",
        "store.members(store.state.clusters - 1).length === 30",
    ),
    ("merge two", "", "move('merge-with', 1);", "store.state.merged.has(1)"),
    ("undo", "", "undo.click();", "!store.state.merged.has(1)"),
]
HELPERS = """window.move = (id, value) => { const list = document.getElementById(id); list.value = value;
    list.dispatchEvent(new Event('change')); };"""


@contextmanager
def served(run: Path) -> Iterator[str]:
    """`temi serve` of a copy of `run`: its address."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(run, Path(folder) / run.name)
        server = subprocess.Popen([TEMI, "serve", copy], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            yield next(word for word in server.stdout.readline().split() if word.startswith("http"))
        finally:
            server.kill()
            server.wait()


@contextmanager
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(120)
    try:
        driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        yield driver
    finally:
        driver.quit()


def main_thread(driver: Any) -> float:
    """Processor milliseconds of the tasks of the main thread so far."""
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return 1000 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def first_paint(driver: Any, address: str) -> dict[str, Any]:
    driver.get(address)
    until(driver, "document.documentElement.dataset.ready === 'yes'")
    paint = driver.execute_script(
        "return [performance.getEntriesByName('first-contentful-paint')[0].startTime, performance.now(), store.count]"
    )
    return {"action": "first paint", "wall_ms": paint[0], "main_ms": main_thread(driver), "rows": paint[2]}


def until(driver: Any, condition: str) -> None:
    script = f"const done = arguments[0]; const look = () => ({condition}) ? done() : setTimeout(look, 5); look();"
    driver.execute_async_script(script)


def act(driver: Any, name: str, ready: str, script: str, wanted: str) -> dict[str, Any]:
    driver.execute_async_script(FRAMES + ready + PAINTED)
    before = main_thread(driver)
    wall = driver.execute_async_script(FRAMES + script + PAINTED)
    after = main_thread(driver)
    if wanted:
        until(driver, wanted)
    return {"action": name, "wall_ms": wall, "main_ms": after - before}


def synthetic_run(rows: int, folder: Path) -> Path:
    """A short run on `rows` random embeddings, made once."""
    run = folder / f"run-{rows}"
    if not (run / "result.json").exists():
        settings = [f"heads.clusters={CLUSTERS}", "heads.count=2", "train.min_steps=50", "train.epochs=0"]
        cache = write_cache(folder / f"cache-{rows}", make_manifest(rows, DIM))
        train_heads(cache, load_config(None, [*settings, "train.tensorboard=false", "start.kind=random"]), run)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--synthetic", type=int, metavar="ROWS")
    parser.add_argument("--folder", type=Path, default=Path("page"))
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    run = arguments.run or synthetic_run(arguments.synthetic, arguments.folder)
    with served(run) as address, browser() as driver:
        rows = [first_paint(driver, address)]
        driver.execute_script(HELPERS)
        rows += [act(driver, *action) for action in ACTIONS]
    for row in rows:
        line = {"run": run.name, **row}
        print(f"{row['action']:22} wall {row['wall_ms']:7.0f} ms   main thread {row['main_ms']:7.0f} ms", flush=True)
        if arguments.results:
            with arguments.results.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
