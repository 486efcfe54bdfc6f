"""A run on images of a user's own source: what shows it names the plugin, or says that it is needed."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from photos import PhotoRun
from serving import serving
from tiny_clip import write_clip

TEMI = Path(sys.executable).with_name("temi")
GUIDE = Path(__file__).parents[3] / "docs/adding-a-source.md"
PLUGIN = GUIDE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
SHORT = ("heads.clusters=3", "heads.count=2", "neighbors.k=5", "train.epochs=0", "train.min_steps=20")

pytestmark = pytest.mark.slow


def temi(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([TEMI, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.long
def test_report_serve_and_suggestions_take_the_plugin_of_a_source(photo_run: PhotoRun, tmp_path: Path) -> None:
    plugin, archive, run = tmp_path / "zips.py", tmp_path / "a.zip", tmp_path / "run"
    plugin.write_text(PLUGIN)
    with ZipFile(archive, "w") as made:
        for path in sorted(photo_run.photos.glob("*/?.jpg")):
            made.write(path, str(path.relative_to(photo_run.photos)))
    weights = ["--set", f"embed.backbone={photo_run.weights}", "--set", "embed.workers=0"]
    temi("embed", archive, "--out", tmp_path / "cache", "--plugin", plugin, *weights)
    temi("train-heads", tmp_path / "cache", "--out", run, *(word for one in SHORT for word in ("--set", one)))
    told = temi("report", run, "--plugin", plugin)
    assert "no pictures" not in told.stderr
    assert f"next: temi serve {run} --plugin {plugin}, to see" in told.stdout
    with serving(run) as server:
        assert b"name it by --plugin FILE" in server.ask("")[1]
    with serving(run, "--plugin", plugin) as server:
        assert server.ask("thumb/0")[0] == 200
        assert b"name it by --plugin FILE" not in server.ask("")[1]
    (tmp_path / "words.txt").write_text("red\ngreen\nblue\ndog\n")
    suggest = ["names", run, "--suggest", write_clip(tmp_path / "clip"), "--words", tmp_path / "words.txt"]
    assert "name it by --plugin FILE" in temi(*suggest, code=2).stderr
    assert temi(*suggest, "--plugin", plugin).stdout.startswith("cluster,name,images")
