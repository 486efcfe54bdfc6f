"""Numbers in messages: one image, several images."""

from pathlib import Path

import numpy as np
import pandas as pd
from typer.testing import CliRunner

from temi.cache import EmbeddingCache
from temi.cache.kept import save_kept
from temi.cache.words import counted
from temi.cli import app
from temi.pipeline.results.mosaic import mosaic


def test_one_is_not_several() -> None:
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert counted(1797, "row") == "1,797 rows"
    assert [counted(number, "class has", "classes have") for number in (1, 3)] == ["1 class has", "3 classes have"]


def test_a_cache_of_one_image_is_told_so(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((1, 4), np.float32))
    (tmp_path / "keys.txt").write_text("a.jpg\n")
    cache, temi = tmp_path / "cache", CliRunner()

    def said(*words: object) -> str:
        return temi.invoke(app, ["cache", *map(str, words)]).output

    made = said("import", tmp_path / "one.npy", "--keys", tmp_path / "keys.txt", "--out", cache)
    assert f"{cache}: 1 row x 4, 0 views each" in made
    assert f"{cache}: 1 row, every byte as written" in said("verify", cache)
    assert "1 row x 4, 0 views each" in said("export", cache, tmp_path / "one.parquet")
    save_kept(cache / "neighbors", "copies", {"embeddings": "0" * 32}, {"x": np.zeros(3)})
    assert f"{cache}: 1 file dropped" in said("prune", cache)
    assert "1 image x 4, 0 views" in repr(EmbeddingCache.open(cache))


def test_a_run_of_one_image_is_told_so() -> None:
    table = pd.DataFrame({"key": ["a.jpg"], "row": [0], "cluster": [0], "confidence": [1.0]})
    assert "<p>1 image in 1 cluster</p>" in mosaic(table, [""], None)
