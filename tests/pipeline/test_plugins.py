"""A plugin runs once, under a name of its own, and each way of failing to load is one sentence."""

import hashlib
import pickle
import re
import sys
from functools import partial
from pathlib import Path

import pytest

from temi.pipeline.errors import UserError
from temi.pipeline.plugins import blame, load_plugin
from temi.pipeline.registry import OBJECTIVES


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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("    return {}['sharpnes']", "3: KeyError: 'sharpnes'"),
        ("    return int('two\\nlines')", "3: ValueError: invalid literal for int"),
        ("    raise SystemExit(3)", "3: SystemExit: 3"),
        ("    return hashlib.new('none')", "3: ValueError: unsupported hash type none"),
    ],
)
def test_an_error_in_a_plugins_function_says_where(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path, f"import hashlib\ndef mine(x):\n{text}\n")
    mine = load_plugin(path).module.mine
    with (
        pytest.raises(UserError, match=re.escape(f"the start 'x' failed at {path}:{reason}")) as caught,
        blame("the start 'x'", mine),
    ):
        mine(1)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_an_error_in_a_function_without_a_file_is_told_as_well() -> None:
    with (
        pytest.raises(UserError, match=r"^the start 'x' failed: ValueError"),
        blame("the start 'x'", partial(int, "x")),
    ):
        int("x")


def test_errors_of_this_package_and_sentences_stay_as_they_are() -> None:
    with pytest.raises(KeyError, match="fault"), blame("the objective 'temi'", OBJECTIVES["temi"].loss):
        raise KeyError("fault")
    with pytest.raises(UserError, match=r"^as it is$"), blame("the start 'x'", lambda: None):
        raise UserError("as it is")
