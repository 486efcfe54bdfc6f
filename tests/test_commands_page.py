"""docs/commands.md describes every command, argument and option exactly once, in the words of the help."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from temi.cli import app

PAGE = Path(__file__).parents[1] / "docs/commands.md"
STALE = "docs/commands.md is not that of the commands as they are; write it again with `make docs`"


def commands(command: object, name: str = "temi") -> Iterator[tuple[str, object]]:
    parts = getattr(command, "commands", {})
    if not parts:
        yield name, command
    for part, inner in parts.items():
        yield from commands(inner, f"{name} {part}")


COMMANDS = dict(commands(typer.main.get_command(app)))


def sections() -> dict[str, str]:
    found = re.split(r"^#+ `(.+)`$", html.unescape(PAGE.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described_once(name: str) -> None:
    text = sections().get(name, "")
    assert " ".join((COMMANDS[name].help or "").split()) in " ".join(text.split()), STALE
    for parameter in COMMANDS[name].params:
        listed = [line for line in text.splitlines() if line.startswith("* `") and (parameter.help or "") in line]
        option = parameter.opts[0] if parameter.opts[0].startswith("-") else ""
        assert len([line for line in listed if f"`{option}" in line]) == 1, f"{name} {parameter.name}: {STALE}"


def test_nothing_is_described_that_is_not_there() -> None:
    for name, text in sections().items():
        for option in re.findall(r"^\* `(--[a-z-]+)", text, re.MULTILINE):
            known = {opt for parameter in getattr(COMMANDS.get(name), "params", []) for opt in parameter.opts}
            assert option == "--help" or option in known, f"{name} {option}: {STALE}"


def test_sentences_are_whole_and_exit_codes_are_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "&#" not in text, STALE
    assert not re.search(r"^\* .*\.\.\.$", text, re.MULTILINE), STALE
    for name, section in sections().items():
        assert name not in COMMANDS or "Exit codes: 0 done" in section, f"{name}: {STALE}"
