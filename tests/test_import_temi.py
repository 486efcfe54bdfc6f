"""`import temi`: instant, not shadowed by a user's own files, and whole: embed, train, open, look."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

import temi
from temi.pipeline.errors import UserError

TEMI = Path(sys.executable).with_name("temi")
ROOT = Path(__file__).parents[1]


def python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_users_own_files_do_not_shadow_it(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the wrong pipeline')")
    (tmp_path / "configs").mkdir()
    code = "import temi, temi.cache, temi.pipeline.config; print(temi.TemiClusterer.__name__, temi.open_cache.__name__)"
    assert python(code, tmp_path) == "TemiClusterer open_cache\n"


def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    heavy = ("torch", "numpy", "sklearn", "transformers", "pandas", "h5py", "pydantic")
    code = f"import sys, temi, temi.cli; print([name for name in {heavy} if name in sys.modules])"
    assert python(code, tmp_path) == "[]\n"
    code = "import sys, temi; temi.open_run; print('torch.distributed.run' in sys.modules)"
    assert python(code, tmp_path) == "False\n"


def test_versions_and_names() -> None:
    shown = subprocess.run([TEMI, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown == f"temi {temi.__version__}\n"
    same = subprocess.run([sys.executable, ROOT / "cli.py", "--version"], capture_output=True, text=True, check=True)
    assert same.stdout == shown
    assert {"TemiClusterer", "embed", "train_heads", "open_cache", "open_run"} <= set(dir(temi))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = temi.nothing


def test_every_room_is_in_the_wheel() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    rooms = {
        path.parent.relative_to(ROOT) for top in ("cache", "pipeline") for path in (ROOT / top).rglob("__init__.py")
    }
    assert {f"temi.{'.'.join(room.parts)}" for room in rooms} <= listed


def test_both_stages_and_what_they_leave(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "weights")
    processor = BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(tmp_path / "weights")
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for number in range(30):
        color = random.integers(0, 30, (40, 60, 3)) + np.array([200, 20, 90])[[number % 2, 1, 2]]
        Image.fromarray(color.astype(np.uint8)).save(tmp_path / f"photos/{number}.png")
    few = ["embed.views=0", "embed.workers=0", f"embed.backbone={tmp_path / 'weights'}", "embed.engine=torch"]
    cache = temi.embed(tmp_path / "photos", tmp_path / "cache", few)
    assert repr(cache).endswith("30 images x 16, 0 views, dinov2 (local folder))")
    short = ["heads.count=2", "train.min_steps=40", "train.epochs=0", "neighbors.k=5", "train.tensorboard=false"]
    run = temi.train_heads(str(tmp_path / "cache"), tmp_path / "run", 2, short)
    again = temi.open_run(str(tmp_path / "run"))
    assert repr(again) == repr(run) == f"FinishedRun({str(tmp_path / 'run')!r}: 30 images in 2 clusters)"
    assert list(again.assignments.columns) == ["key", "row", "cluster", "confidence"]
    assert again.embeddings.shape == (30, 16)
    assert again.probabilities.shape == (30, 2)
    assert (again.probabilities.argmax(1) == again.assignments["cluster"]).all()
    index, cosine = again.neighbors(3)
    assert index.shape == cosine.shape == (30, 3)
    assert temi.open_cache(str(tmp_path / "cache")).rows == 30


def test_mistakes_are_told_in_the_words_of_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temi.pipeline.encode.hugging_face.hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos/0.png")
    with pytest.raises(UserError, match="does not answer, and it was not downloaded before") as told:
        temi.embed(tmp_path / "photos", tmp_path / "cache", ["embed.backbone=nobody/nothing"])
    assert 'settings=["embed.backbone=FOLDER"], or settings=["embed.backbone=efficientnet-lite0"]' in str(told.value)
    assert "--set" not in str(told.value)
    short = ["objective.beta=0.6", "foo"]
    with pytest.raises(UserError, match=re.escape('e.g. settings=["objective.beta=0.8"]')):
        temi.train_heads(tmp_path / "cache", tmp_path / "run", settings=short)
    with pytest.raises(UserError, match=r"not ndarray; cluster an array by temi.TemiClusterer\(n_clusters=10\)"):
        temi.train_heads(np.zeros((9, 4), np.float32), tmp_path / "run")  # type: ignore[arg-type]


def test_embed_takes_plugins(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise RuntimeError('the plugin was run')")
    with pytest.raises(UserError, match=r"own.py.*the plugin was run"):
        temi.embed(tmp_path, tmp_path / "cache", plugins=[tmp_path / "own.py"])
