"""The file of corrections: append-only, plain JSON, and a crash cannot hurt it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

from temi.pipeline.errors import UserError
from temi.pipeline.results.corrections import Merge, Move, Rename, Undo, parse_correction
from temi.pipeline.results.corrections_file import CORRECTIONS, append_corrections, read_corrections


def test_a_torn_last_line_is_nothing_and_is_cut_off(tmp_path: Path) -> None:
    entries = [Merge(clusters=[0, 1], who="ann", when="2026-01-01T00:00:00Z"), Rename(names={0: "Käse"})]
    append_corrections(tmp_path, entries)
    assert read_corrections(tmp_path) == entries
    whole = (tmp_path / CORRECTIONS).read_bytes()
    for cut in range(len(whole)):
        (tmp_path / CORRECTIONS).write_bytes(whole[:cut])
        kept = read_corrections(tmp_path)
        ended = whole[cut : cut + 1] == b"\n"  # all of the line is there but its break, as editors leave it
        assert kept == entries[: whole[:cut].count(b"\n") + ended]
        append_corrections(tmp_path, [Undo()])
        assert read_corrections(tmp_path) == [*kept, Undo()]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    for line in ('{"action": "fly"}', "[]", "{", '{"action": "merge", "clusters": [1]}', '{"action": "undo", "x": 1}'):
        (tmp_path / CORRECTIONS).write_text(f'{{"action": "undo"}}\n{line}\n')
        with pytest.raises(UserError, match=rf"line 2 of .*{CORRECTIONS}: .*; correct or remove it"):
            read_corrections(tmp_path)


def test_a_kill_at_any_moment_loses_no_entry_that_was_acknowledged(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from temi.pipeline.results.corrections import Rename
        from temi.pipeline.results.corrections_file import append_corrections
        for number in range(100000):
            append_corrections(Path(sys.argv[1]), [Rename(names={number: "x" * 100})])
            print(number, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    said += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    count = len([line for line in said if line.endswith("\n")])
    entries = read_corrections(tmp_path)
    assert count <= len(entries) <= count + 1
    assert [list(entry.names) for entry in entries] == [[number] for number in range(len(entries))]


def test_lines_are_plain_json(tmp_path: Path) -> None:
    append_corrections(tmp_path, [Move(keys=["a b/ü.jpg"], to=3, who="ann", when="2026-01-01T00:00:00Z")])
    [line] = (tmp_path / CORRECTIONS).read_text().splitlines()
    expected = {"action": "move", "keys": ["a b/ü.jpg"], "to": 3, "who": "ann", "when": "2026-01-01T00:00:00Z"}
    assert json.loads(line) == expected
    assert isinstance(pd.DataFrame([json.loads(line)]), pd.DataFrame)


def test_what_cannot_be_written_whole_is_not_written(tmp_path: Path) -> None:
    """Else part would be in force, and the next try would be refused for what is there by then."""
    append_corrections(tmp_path, [Rename(names={0: "cats"})])
    before = (tmp_path / CORRECTIONS).read_bytes()
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from temi.pipeline.results.corrections import Rename
        from temi.pipeline.results.corrections_file import append_corrections
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        append_corrections(Path(sys.argv[1]), [Rename(names={number: "x" * 100}) for number in range(200)])
    """)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert (
        f"UserError: cannot write {tmp_path / CORRECTIONS}: File too large; no correction was taken in" in done.stderr
    )
    assert (tmp_path / CORRECTIONS).read_bytes() == before


def test_a_last_line_that_an_editor_left_open_counts(tmp_path: Path) -> None:
    open_line = b'{"action": "rename", "names": {"0": "cats"}}'
    (tmp_path / CORRECTIONS).write_bytes(open_line)
    assert read_corrections(tmp_path) == [Rename(names={0: "cats"})]
    append_corrections(tmp_path, [Undo()])
    assert read_corrections(tmp_path) == [Rename(names={0: "cats"}), Undo()]
    assert (tmp_path / CORRECTIONS).read_bytes().startswith(open_line + b"\n{")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"action": "split", "cluster": 0, "parts": 1}', "a cluster is split into 2 to 50 parts"),
        ('{"action": "split", "cluster": 0, "parts": 51}', "a cluster is split into 2 to 50 parts"),
        ('{"action": "split", "cluster": 0, "parts": 2.5}', "a cluster is split into 2 to 50 parts"),
        ('{"action": "split", "cluster": 0, "parts": null}', "a cluster is split into 2 to 50 parts"),
        ('{"action": "split", "cluster": "0"}', "'cluster' is the number of a cluster, 0 or more"),
        ('{"action": "split"}', "split needs 'cluster', the number of a cluster, 0 or more"),
        ('{"action": "merge", "clusters": [1]}', "'clusters' is a list of two or more numbers of clusters"),
        ('{"action": "merge", "clusters": [1, -2]}', "'clusters' is a list of two or more numbers of clusters"),
        ('{"action": "move", "keys": [], "to": 0}', "'keys' is a list of one or more names of images"),
        ('{"action": "move", "keys": ["a"], "to": "b"}', "'to' is the number of a cluster, 0 or more"),
        ('{"action": "same", "keys": ["a"]}', "'keys' is a list of the names of two images"),
        ('{"action": "rename", "names": {"x": "a"}}', "'names' is an object of names by cluster, each of at most 120"),
        ('{"action": "rename", "names": {"0": "' + 121 * "x" + '"}}', "'names' is an object of names by cluster, each"),
        ('{"action": "note", "text": ""}', "'text' is a note of 1 to 2000 characters"),
        ('{"action": "note", "text": "a", "keys": "b"}', "'keys' is a list of names of images"),
        ('{"action": "undo", "who": 5}', "'who' is text of at most 120 characters"),
        ('{"action": "undo", "when": "' + 41 * "x" + '"}', "'when' is text of at most 40 characters"),
        ('{"action": "undo", "x": 1}', "undo has no 'x'"),
        (
            '{"action": "fly"}',
            "'fly' is no action; they are merge, split, move, remove, same, different, rename, note,",
        ),
        ('{"keys": ["a"]}', "it needs an 'action'; they are merge, split,"),
        ("[]", "it is no JSON object"),
        ("{", "it is not whole JSON"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_plainly(line: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_correction(line, "this correction")
    assert str(refused.value).startswith(f"this correction: {sentence}")
    assert str(refused.value).endswith("; correct or remove it")
    assert "nput" not in str(refused.value)
