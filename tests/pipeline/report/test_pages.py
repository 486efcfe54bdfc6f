"""The report: its figures against plain references, its text harmless, its pictures bounded."""

import base64
import io
import json
import re
import shutil
import subprocess
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixtures import mixture, write_cache
from photos import HOSTILE, PhotoRun, short
from PIL import Image
from typer.testing import CliRunner

from temi.cli import app
from temi.pipeline.errors import UserError
from temi.pipeline.images import open_source
from temi.pipeline.report import pages as module
from temi.pipeline.report.cards import centers, nearest_clusters, typical_images
from temi.pipeline.report.pages import center_dendrogram, confusion, figures, shown_images, write_report
from temi.pipeline.report.records import Brackets
from temi.pipeline.results.correct import correct
from temi.pipeline.results.corrections import Correction, Merge, Move, Remove, Rename, Split, Undo
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.lists import evidence
from temi.pipeline.results.map import MAP, map_of, run_map
from temi.pipeline.results.names import set_names
from temi.pipeline.results.thumbnails import (
    SIDE,
    THUMBNAILS,
    Thumbnail,
    kept_thumbnails,
    laplacian,
    oddities,
    run_thumbnails,
    thumbnail,
)
from temi.pipeline.runs.train import train_heads


@pytest.fixture
def finished(photo_run: PhotoRun, tmp_path: Path) -> FinishedRun:
    shutil.copytree(photo_run.run, tmp_path / "run")
    return FinishedRun(tmp_path / "run")


def block(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def pictures(page: str) -> list[str]:
    blocks = re.findall(r'<script type="application/json" class="pictures">(.*?)</script>', page, re.DOTALL)
    return [picture for block in blocks for picture in json.loads(block)]


def test_the_page_shows_what_the_run_says(finished: FinishedRun, tmp_path: Path) -> None:
    correct(finished, [Rename(names={1: "ones"}), Merge(clusters=[0, 1])])
    page = write_report(finished, tmp_path / "page.html").read_text()
    data, table = block(page), finished.trained
    assert data["images"]["key"] == table["key"].tolist()
    assert data["images"]["cluster"] == table["cluster"].tolist()  # the page replays the corrections
    assert [entry["action"] for entry in data["entries"]] == ["rename", "merge"]
    assert data["base"]["sizes"] == np.bincount(table["cluster"], minlength=3).tolist()
    assert data["overview"]["unreadable"] == 1
    assert data["missing"] == ""
    assert 1 not in data.get("tree", {"leaves": []})["leaves"]
    assert all(len(near) == len(set(near)) == 5 for near in data["images"]["near"])
    colors = {"red": 0, "green": 1, "blue": 2}
    for key, picture in zip(data["images"]["key"], pictures(page), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        assert pixels.shape == (77, 128, 3)
        assert pixels.mean((0, 1)).argmax() == colors[key.split("/")[0]]


def test_no_text_leaves_its_place_and_nothing_is_fetched(finished: FinishedRun, tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text('cluster,name\n0,"</script><script>alert(2)</script>"\n1,"{{script}} <!--"\n')
    set_names(finished.folder, names, 3)
    page = write_report(finished, tmp_path / "page.html").read_text()
    data = block(page)
    assert data["entries"][0]["names"] == {"0": "</script><script>alert(2)</script>", "1": "{{script}} <!--"}
    assert f"red/{HOSTILE}" in data["images"]["key"]
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "alert(" not in re.sub(r'id="data">.*?</script>', "", own, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert "default-src 'none'" in own
    assert page.count("<!doctype html>") == 1


def test_a_title_is_escaped() -> None:
    page = module.render("report", "{}", "<b>run & co")
    assert "<title>&lt;b&gt;run &amp; co" in page
    assert "<b>run" not in page


def test_missing_images_are_said_and_given_ones_must_be_right(finished: FinishedRun, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(finished.cache.folder, cache)
    (cache / "source.json").unlink()
    moved = FinishedRun(finished.folder, cache)
    known = evidence(moved)
    data, shown, _ = figures(moved, known, None)
    assert "does not say where its images are" in data.missing
    assert set(shown) == {""}
    with pytest.raises(UserError, match="are not those that"):
        figures(moved, known, "digits")


def test_a_cache_without_labels_or_images_makes_a_page(tmp_path: Path) -> None:
    train_heads(write_cache(tmp_path / "cache", mixture(rows=80)[0]), short(), tmp_path / "run")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "open it in a browser" in result.stdout
    assert "no pictures: " in result.stderr
    data = block((tmp_path / "run/report.html").read_text())
    assert "confusion" not in data
    assert len(data["images"]["x"]) == 80


def test_typical_images_are_the_nearest_to_the_center() -> None:
    rng = np.random.default_rng(0)
    scaled = rng.standard_normal((300, 5)).astype(np.float32)
    cluster = rng.integers(0, 4, 300)
    cluster[cluster == 3] = 2  # cluster 3 is empty
    center = centers(scaled, cluster, 4)
    typical = typical_images(scaled, cluster, center, 12)
    for c in range(3):
        mean = scaled[cluster == c].mean(0)
        np.testing.assert_allclose(center[c], mean / np.linalg.norm(mean), atol=1e-5)
        assert typical[c] == sorted(np.flatnonzero(cluster == c), key=lambda i: -(scaled[i] @ center[c]))[:12]
    assert typical[3] == []
    near = nearest_clusters(center, cluster)
    assert near[3] == []
    assert near[0] == sorted([1, 2], key=lambda other: -(center[0] @ center[other]))


def test_confusion_is_aligned_and_leaves_unlabeled_images_out() -> None:
    label = np.array([0, 0, 0, 2, 2, -1, -1])
    cluster = np.array([3, 3, 1, 0, 0, 0, 2])
    found = confusion(label, cluster, ("a", "b", "c"), ["p", "q", "r", "s"])
    assert found is not None
    assert found.classes == ["a", "c"]
    assert found.clusters == ["s", "p", "q"]
    assert found.count == [[2, 0, 1], [0, 2, 0]]
    assert found.accuracy == pytest.approx(4 / 5)
    assert confusion(np.full(7, -1), cluster, (), ["p", "q", "r", "s"]) is None


def test_the_tree_joins_the_closest_first() -> None:
    center = np.array([[1, 0], [0.98, 0.2], [0, 0], [0, 1]], dtype=np.float32)
    tree = center_dendrogram(center, np.array([0, 1, 3]))
    assert tree is not None
    assert sorted(tree.leaves) == [0, 1, 3]
    assert tree.across[0][1] == pytest.approx(np.linalg.norm(center[0] - center[1]), abs=1e-3)
    assert center_dendrogram(center, np.array([1, 1])) is None


@pytest.mark.skipif(not shutil.which("node"), reason="apt-get install nodejs")
def test_the_page_takes_clusters_out_of_the_tree_as_if_they_had_never_been_in_it() -> None:
    rng = np.random.default_rng(0)
    for leaves in (2, 3, 7, 40):
        center = rng.standard_normal((leaves, 3)).astype(np.float32)
        center[-1] = center[0]  # joined at a distance of 0, as leaves are
        tree = center_dendrogram(center, np.arange(leaves))
        assert tree is not None
        whole = pruned_in_page(tree, tree.leaves)
        assert whole["leaves"] == tree.leaves
        np.testing.assert_allclose(whole["across"], tree.across)
        np.testing.assert_allclose(whole["along"], tree.along, atol=0.1)
        left = sorted(rng.permutation(leaves)[: leaves // 2].tolist())
        some = pruned_in_page(tree, left)
        assert some["leaves"] == [leaf for leaf in tree.leaves if leaf in left]
        assert len(some["across"]) == len(left) - 1
        for one in left:
            for other in left:
                assert met(some, one, other) == met(vars(tree), one, other)
    assert pruned_in_page(tree, [])["leaves"] == []


def pruned_in_page(tree: Brackets, there: list[int]) -> dict[str, Any]:
    """`tree` with the clusters `there` alone, as page/charts.js makes it."""
    charts = (files("temi.pipeline.report") / "page/charts.js").read_text(encoding="utf-8")
    given = f"{json.dumps(vars(tree))}, new Set({json.dumps(there)})"
    script = f"const shared = {{}};\n{charts}\nconsole.log(JSON.stringify(charts.pruned({given})));"
    done = subprocess.run(["node", "-"], input=script, capture_output=True, text=True, check=True)
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def met(tree: dict[str, Any], one: int, other: int) -> float:
    """How far apart two leaves meet: at the lowest bracket that spans both, which is the first that does."""
    low, high = sorted(10 * tree["leaves"].index(cluster) + 5 for cluster in (one, other))
    if low == high:
        return 0.0
    spans: list[tuple[float, float, float]] = []  # first and last leaf, middle
    for across, along in zip(tree["across"], tree["along"], strict=True):
        ends = []
        for x, end in ((along[0], 0), (along[3], 1)):
            inner = [span for span in spans if abs(span[2] - x) < 0.3]
            ends.append(inner[-1][end] if inner else round(x))
        if ends[0] <= low and high <= ends[1]:
            return float(across[1])
        spans = [span for span in spans if not ends[0] <= span[0] <= ends[1]]
        spans.append((ends[0], ends[1], (along[0] + along[3]) / 2))
    raise AssertionError("the tree does not join these")


def test_more_images_than_fit_are_sampled_with_all_of_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTS", 100)
    shown, place = shown_images(1000, [5, 999, 17])
    assert 100 <= len(shown) <= 103
    assert all(shown[place[i]] == i for i in (5, 17, 999))
    assert shown_images(1000, [])[0].dtype == np.int64  # all removed: no card shows any


@pytest.mark.skipif(not shutil.which("node"), reason="apt-get install nodejs")
def test_a_sample_counts_what_corrections_move_outside_of_it(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POINTS", 5)
    monkeypatch.setattr(module, "TYPICAL", 1)
    keys, cluster = finished.trained["key"].to_numpy(), finished.trained["cluster"].to_numpy()
    one, other = np.argsort(-np.bincount(cluster))[:2].tolist()  # the largest
    first, second = keys[cluster == one].tolist(), keys[cluster == other].tolist()
    asked: list[Correction] = [Move(keys=first[:9], to=3), Remove(keys=second[:4]), Split(cluster=other)]
    asked += [Merge(clusters=[other, 3]), Move(keys=first[:4], to=one), Remove(keys=first[2:6])]
    correct(finished, asked)
    counted = as_counted(finished)
    page = block(write_report(finished, tmp_path / "page.html").read_text())
    assert len(page["images"]["key"]) < 10
    assert in_page(page) == counted
    correct(finished, [Undo(), Undo(), Undo()])
    page = block(write_report(finished, tmp_path / "page.html").read_text())
    assert in_page(page) == as_counted(finished) != counted
    page["entries"] += 3 * [{"action": "redo"}]  # in the page
    assert in_page(page) == counted


def as_counted(run: FinishedRun) -> list[int]:
    """Images removed from all clusters, and those in each."""
    return np.bincount(run.corrected.cluster + 1, minlength=run.clusters + 1).tolist()


def in_page(figures: dict[str, Any]) -> list[int]:
    """The same, as page/store.js counts."""
    store = (files("temi.pipeline.report") / "page/store.js").read_text(encoding="utf-8")
    sizes = "[store.removed, ...Array.from({ length: store.state.clusters }, (_, c) => store.size(c))]"
    script = f"const shared = {{ data: {json.dumps(figures)} }};\n{store}\nconsole.log(JSON.stringify({sizes}));"
    done = subprocess.run(["node", "-"], input=script, capture_output=True, text=True, check=True)
    counted: list[int] = json.loads(done.stdout)
    return counted


def test_the_map_keeps_groups_apart_and_is_made_once(tmp_path: Path) -> None:
    embedding, label = mixture(rows=400, clusters=4, noise=0.3)
    scaled = embedding.astype(np.float32)
    position = run_map(tmp_path, scaled, np.arange(400))
    assert position.shape == (400, 2)
    assert np.abs(position).max() <= 1
    middle = np.stack([position[label == c].mean(0) for c in range(4)])
    spread = max(position[label == c].std(0).max() for c in range(4))
    apart = min(np.linalg.norm(middle[a] - middle[b]) for a in range(4) for b in range(a))
    assert apart > 2 * spread
    before = (tmp_path / MAP).stat().st_mtime_ns
    np.testing.assert_array_equal(run_map(tmp_path, scaled, np.arange(400)), position)
    assert (tmp_path / MAP).stat().st_mtime_ns == before
    assert not np.array_equal(run_map(tmp_path, scaled[::-1].copy(), np.arange(400)[::-1].copy()), position)
    for few in (2, 5):
        assert np.isfinite(map_of(scaled[:few])).all()


def test_a_folder_that_cannot_be_written_to_keeps_neither_map_nor_thumbnails(tmp_path: Path) -> None:
    for name in (MAP, THUMBNAILS):
        (tmp_path / f"{name}.part").mkdir()  # in the way, also of root, whom permissions do not stop
    scaled = mixture(rows=100)[0].astype(np.float32)
    assert run_map(tmp_path, scaled, np.arange(100)).shape == (100, 2)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (10, 10)).save(tmp_path / "photos/a.png")
    images = open_source(str(tmp_path / "photos"), max_pixels=1000)
    assert run_thumbnails(tmp_path, images, [0], 10**6).keys() == {0}
    assert not any((tmp_path / name).exists() for name in (MAP, THUMBNAILS))


def test_thumbnails_never_enlarge_are_upright_and_made_once(tmp_path: Path) -> None:
    wide = Image.new("RGB", (400, 100), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    (tmp_path / "photos").mkdir()
    wide.save(tmp_path / "photos/turned.jpg", exif=exif)
    Image.new("RGBA", (20, 10), (255, 0, 0, 0)).save(tmp_path / "photos/small.png")
    Image.new("L", (300, 300), 77).save(tmp_path / "photos/gray.jpg")
    images = open_source(str(tmp_path / "photos"), max_pixels=10**6)
    sizes = {}
    for row, key in enumerate(images.keys):
        sizes[key] = Image.open(io.BytesIO(thumbnail(images, row).webp)).size
    assert sizes == {"turned.jpg": (SIDE // 4, SIDE), "small.png": (20, 10), "gray.jpg": (SIDE, SIDE)}
    made = run_thumbnails(tmp_path, images, [0, 1, 2], 10**6)
    before = (tmp_path / THUMBNAILS).stat().st_mtime_ns
    time.sleep(0.01)
    (tmp_path / "photos/turned.jpg").unlink()
    assert run_thumbnails(tmp_path, images, [2, 1, 0], 10**6) == made
    assert (tmp_path / THUMBNAILS).stat().st_mtime_ns == before
    size = len(made[0].webp)
    assert list(run_thumbnails(tmp_path, images, [0, 1, 2], size)) == [0]
    (tmp_path / THUMBNAILS).write_bytes(b"damaged")
    lost = images.keys.index("turned.jpg")
    assert set(run_thumbnails(tmp_path, images, [0, 1, 2], 10**6)) == {0, 1, 2} - {lost}


def test_black_blank_and_blurred_pixels_are_told() -> None:
    sharp = {row: Thumbnail(b"x", 120.0, 50.0, 0.5 + 0.01 * (row % 7)) for row in range(30)}
    odd = {
        30: Thumbnail(b"x", 3.0, 1.0, 0.5),
        31: Thumbnail(b"x", 200.0, 2.0, 0.5),
        32: Thumbnail(b"x", 120.0, 40.0, 0.01),
    }
    assert oddities(sharp | odd) == {30: "black", 31: "blank", 32: "blurred"}
    checks = np.indices((9, 9)).sum(0) % 2 * 255.0
    assert laplacian(checks.astype(np.float32)) == pytest.approx(4 * 255)
    assert laplacian(np.ones((2, 5), np.float32)) == 0


def test_a_plain_picture_of_a_dark_looking_color_is_blank_and_not_black(tmp_path: Path) -> None:
    colors = {
        "blue": (0, 0, 255),
        "red": (255, 0, 0),
        "white": (255, 255, 255),
        "black": (0, 0, 0),
        "night": (9, 9, 30),
    }
    for name, color in colors.items():
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{name}.png")
    images = open_source(str(tmp_path), max_pixels=10**6)
    odd = oddities({row: thumbnail(images, row) for row in range(len(images.keys))})
    told = {Path(images.keys[row]).stem: what for row, what in odd.items()}
    assert told == {"blue": "blank", "red": "blank", "white": "blank", "black": "black", "night": "black"}


def test_an_image_that_could_not_be_read_is_not_called_black_and_is_tried_again(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        Image.new("L", (30, 30), 120).save(photos / f"{name}.png")
    images = open_source(str(photos), max_pixels=1000)
    (photos / "b.png").rename(tmp_path / "away.png")
    assert set(run_thumbnails(tmp_path, images, [0, 1], 10**6)) == {0}
    assert set(kept_thumbnails(tmp_path)) == {0}
    (tmp_path / "away.png").rename(photos / "b.png")
    assert set(run_thumbnails(tmp_path, images, [0, 1], 10**6)) == {0, 1}


def test_a_damaged_map_is_made_anew(tmp_path: Path) -> None:
    scaled = mixture(rows=100)[0].astype(np.float32)
    position = run_map(tmp_path, scaled, np.arange(100))
    (tmp_path / MAP).write_bytes(b"damaged")
    np.testing.assert_array_equal(run_map(tmp_path, scaled, np.arange(100)), position)


@pytest.mark.parametrize("line", ['{"step": 1', "null", "[]", "\0", '{"a":' * 100_000])
def test_damaged_metrics_are_a_sentence(finished: FinishedRun, line: str) -> None:
    finished.files.metrics.write_text(line + "\n")
    with pytest.raises(
        UserError, match=r"metrics.jsonl is damaged \(.*; restore it, or delete it: the page then has no"
    ):
        write_report(finished)


def test_metrics_that_no_page_can_draw_are_left_out(finished: FinishedRun) -> None:
    finished.files.metrics.write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1e999}\n{"step": 3, "loss": 0.5}\n'
    )
    assert block(write_report(finished).read_text(encoding="utf-8"))["curves"]["loss"] == [None, None, 0.5]
