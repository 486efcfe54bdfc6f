import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_manifest, shard_content, write_cache

from temi.cache import CacheError, ShardWriter, save_neighbors
from temi.cache.info import summarize


def test_summary_of_a_finished_cache(tmp_path: Path) -> None:
    write_cache(tmp_path)
    save_neighbors(tmp_path / "neighbors", "k5", np.zeros((20, 5), np.int32), np.zeros((20, 5), np.float16), {})
    summary = json.loads(json.dumps(summarize(tmp_path)))
    assert (summary["rows"], summary["dim"], summary["views"]) == (20, 6, 2)
    assert (summary["shards"], summary["shards_done"], summary["shards_damaged"]) == (3, 3, [])
    assert summary["unreadable_images"] == 2
    assert summary["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.h5"))
    assert summary["seconds"] == {"decode": 0.75, "forward": 4.5}
    assert summary["neighbors"] == ["k5"]
    assert summary["fingerprint"]["pooling"] == "cls"


def test_summary_of_an_unfinished_cache(tmp_path: Path) -> None:
    manifest = make_manifest()
    with ShardWriter.open(tmp_path, manifest) as writer:
        for shard in writer.pending()[:2]:
            writer.write(shard, **shard_content(manifest, shard))
    (tmp_path / "shard-00001.json").write_text("{}")
    summary = summarize(tmp_path)
    assert (summary["shards"], summary["shards_done"], summary["shards_damaged"]) == (3, 1, ["shard-00001"])


def test_no_cache_has_no_summary(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not an embedding cache"):
        summarize(tmp_path)
