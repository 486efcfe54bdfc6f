"""Two commands that start in one instant write the note of where the images are one after the other."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from temi.pipeline.images import open_source
from temi.pipeline.images.recorded import record_origin


def test_many_writers_at_once_leave_one_whole_note(tmp_path: Path) -> None:
    photos, cache = tmp_path / "photos", tmp_path / "cache"
    photos.mkdir()
    cache.mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(photos / "a.png")
    (photos / "film.mov").write_bytes(b"x")
    images = open_source(str(photos), max_pixels=100)
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(record_origin, cache, str(photos), None, images) for _ in range(80)]
    assert [future.exception() for future in done] == [None] * 80
    assert json.loads((cache / "source.json").read_text()) == {"source": str(photos), "root": None, "kind": "folder"}
    assert sorted(path.name for path in cache.iterdir()) == ["skipped.csv", "source.json"]
    (photos / "film.mov").unlink()
    record_origin(cache, str(photos), None, open_source(str(photos), max_pixels=100))
    assert not (cache / "skipped.csv").exists()  # what was left out once is not left out now
