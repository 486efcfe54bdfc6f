"""A plugin runs once, under a name of its own, and each way of failing to load is one sentence."""

import hashlib
import pickle
import sys
from pathlib import Path

import pytest

from temi.pipeline.errors import UserError
from temi.pipeline.plugins import load_plugin


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_what_a_file_defines_is_there_with_its_path_and_digest(tmp_path):
    path = write(tmp_path, "from dataclasses import dataclass\n\n@dataclass\nclass Pair:\n    a: int\n")
    plugin = load_plugin(path)
    assert plugin.path == path
    assert plugin.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    pair = plugin.module.Pair(1)
    assert pickle.loads(pickle.dumps(pair)) == pair


def test_a_file_runs_once_and_again_only_when_it_changed(tmp_path, capsys):
    path = write(tmp_path, "print('ran')")
    assert load_plugin(path) is load_plugin(tmp_path / "." / "mine.py")
    assert capsys.readouterr().out == "ran\n"
    write(tmp_path, "print('again')")
    load_plugin(path)
    assert capsys.readouterr().out == "again\n"


def test_a_plugin_shadows_no_module(tmp_path):
    import json

    plugin = load_plugin(write(tmp_path, "loads = None", "json.py"))
    assert sys.modules["json"] is json
    assert plugin.module.__name__.startswith("_temi_plugin_json_")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\nx ===\n", "line 2: SyntaxError"),
        ("x = 1\n\nraise KeyError('no')\n", "line 3: KeyError: 'no'"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
        ("\0", "cannot be loaded"),
    ],
)
def test_a_file_that_fails_is_one_sentence_and_leaves_nothing(tmp_path, text, reason):
    before = set(sys.modules)
    with pytest.raises(UserError) as caught:
        load_plugin(write(tmp_path, text))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not {name for name in set(sys.modules) - before if name.startswith("_temi_plugin_")}


def test_a_missing_file_and_a_folder_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_plugin(tmp_path / "none.py")
    with pytest.raises(UserError, match="cannot be read"):
        load_plugin(tmp_path)
