import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from synthetic import make_manifest, shard_content, write_cache

from temi.cache import CacheError, ShardWriter, save_neighbors
from temi.cache.info import list_made, prune, summarize
from temi.cache.kept import HEADER, save_kept
from temi.cache.neighbors import list_neighbors


def test_summary_of_a_finished_cache(tmp_path: Path) -> None:
    write_cache(tmp_path)
    graph = np.zeros((20, 5), np.int32), np.zeros((20, 5), np.float16)
    save_neighbors(tmp_path / "neighbors", "k5", *graph, {"k": 5, "scale": "center"})
    summary = json.loads(json.dumps(summarize(tmp_path).to_json()))
    assert (summary["rows"], summary["dim"], summary["views"]) == (20, 6, 2)
    assert (summary["shards"], summary["shards_done"], summary["shards_damaged"]) == (3, 3, [])
    assert summary["unreadable_images"] == 2
    assert summary["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.h5"))
    assert summary["seconds"] == {"decode": 0.75, "forward": 4.5}
    (kept,) = summary["kept"]
    assert (kept["name"], kept["file"], kept["made_from"]) == ("neighbors", "k5.h5", {"k": 5, "scale": "center"})
    assert kept["bytes"] == (tmp_path / "neighbors/k5.h5").stat().st_size
    assert summary["fingerprint"]["pooling"] == "cls"


def test_summary_of_an_unfinished_cache(tmp_path: Path) -> None:
    manifest = make_manifest()
    with ShardWriter.open(tmp_path, manifest) as writer:
        for shard in writer.pending()[:2]:
            writer.write(shard, **shard_content(manifest, shard))
    (tmp_path / "shard-00001.json").write_text("{}")
    summary = summarize(tmp_path)
    assert (summary.shards, summary.shards_done, summary.shards_damaged) == (3, 1, ["shard-00001"])


def test_no_cache_has_no_summary(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not an embedding cache"):
        summarize(tmp_path)


def test_what_is_kept_can_be_dropped_by_name_also_where_it_is_damaged(tmp_path: Path) -> None:
    write_cache(tmp_path)
    for name in ("pool", "heads"):
        save_kept(tmp_path / "neighbors", name, {"c": 3}, {"x": np.zeros(3)})
    (tmp_path / "neighbors/broken.h5").write_bytes(b"no graph")
    assert [(kept.name, kept.recipe) for kept in list_made(tmp_path)][:2] == [("neighbors", {}), ("heads", {"c": 3})]
    with pytest.raises(CacheError, match="keeps no 'layouts'; it keeps heads, neighbors, pool"):
        prune(tmp_path, "layouts")
    assert [kept.name for kept in prune(tmp_path, "heads")] == ["heads"]
    assert [kept.name for kept in prune(tmp_path)] == ["neighbors", "pool"]
    assert not list_made(tmp_path)
    summarize(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        "{}",
        "[]",
        "3",
        "no JSON",
        pytest.param(100_000 * "[", id="deep"),
        '{"name": "heads"}',
        '{"name": 3, "recipe": {}}',
        '{"name": "heads", "recipe": 3}',
    ],
)
def test_a_damaged_file_that_is_kept_is_named_after_its_file(tmp_path: Path, header: str) -> None:
    write_cache(tmp_path)
    folder = tmp_path / "neighbors"
    save_kept(folder, "heads", {"c": 3}, {"x": np.zeros(3)})
    (path,) = folder.iterdir()
    path.write_bytes(save({"x": np.zeros(3)}, {HEADER: header}))
    (kept,) = json.loads(json.dumps(summarize(tmp_path).to_json()))["kept"]
    assert (kept["file"], kept["name"], kept["made_from"]) == (path.name, "heads", {})


@pytest.mark.parametrize("damage", ["attribute", "link"])
def test_a_damaged_graph_that_is_kept_has_no_recipe(tmp_path: Path, damage: str) -> None:
    path = save_neighbors(tmp_path, "k5", np.zeros((20, 5), np.int32), np.zeros((20, 5), np.float16), {"scale": "root"})
    data = path.read_bytes()
    old, new = {"attribute": (b"root", b"r\xff\xfft"), "link": (b"index", b"inde\xff")}[damage]
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    (kept,) = list_neighbors(tmp_path)
    assert (kept.path, kept.name, kept.recipe) == (path, "neighbors", {})
