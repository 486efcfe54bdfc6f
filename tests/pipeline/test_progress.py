"""Progress: what a log file and a terminal show."""

import io

import pytest

from temi.pipeline import progress as module
from temi.pipeline.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_few_seconds_with_rate_and_eta(clock):
    log = io.StringIO()
    with Progress("embed", total=100, unit="img", stream=log) as progress:
        for _ in range(4):
            clock[0] += 2.0
            progress.advance(10, note="shard 1/3")
        assert log.getvalue() == "embed: 30/100 img, 5 img/s, ETA 0:14, shard 1/3\n"


def test_the_last_line_says_how_long_it_took(clock):
    log = io.StringIO()
    with Progress("embed", total=7200, unit="img", stream=log) as progress:
        clock[0] += 3725.0
        progress.advance(7200)
    assert log.getvalue().splitlines()[-1] == "embed: 7200/7200 img, 1.93 img/s, in 1:02:05"


def test_nothing_done_prints_nothing():
    log = io.StringIO()
    with Progress("embed", total=0, unit="img", stream=log):
        pass
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    with Progress("embed", total=3, unit="img", stream=terminal) as progress:
        progress.advance(3, note="shard 1/1")
    assert "embed" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert "img/s" in terminal.getvalue()
    assert "shard 1/1" in terminal.getvalue()
