"""Every `pip install` that code or a page shows can be pasted: it names this distribution and an extra that exists."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = set(PROJECT["optional-dependencies"])
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
CODE = [path for room in ("cache", "pipeline", "examples", "benchmarks") for path in (ROOT / room).rglob("*.py")]
CALL = re.compile(r"pip install (?:-e |--editable )?'?([\w.-]+)\[([\w,]+)\]")


@pytest.mark.parametrize("path", [*PAGES, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_installation_hints_are_right(path: Path) -> None:
    for distribution, extras in CALL.findall(path.read_text(encoding="utf-8")):
        assert distribution in (PROJECT["name"], "."), f"{path}: another project is named {distribution}"
        assert set(extras.split(",")) <= EXTRAS, f"{path}: {extras} is no extra of pyproject.toml"


def test_extras_in_code_exist() -> None:
    from temi.pipeline import extras

    assert PROJECT["name"] == extras.DISTRIBUTION
    calls = [re.findall(r"(?<!def )\binstall\(\"(\w+)\"\)", path.read_text(encoding="utf-8")) for path in CODE]
    named = {extra for found in calls for extra in found}
    assert named
    assert named <= EXTRAS
