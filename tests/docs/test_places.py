"""Every place that the pages "Architecture" and "Where is X?" name exists, and "Architecture" names every package."""

from __future__ import annotations

import re

import pytest
from snippets import DOCS

ROOT = DOCS.parent
PAGES = {name: (DOCS / f"explanation/{name}.md").read_text(encoding="utf-8") for name in ("architecture", "where-is")}
_PATH = re.compile(r"`((?:\w[\w.-]*/)+[\w.-]*)`")
_ROW = re.compile(r"^\| .+ \| `(.+?)` \| `(\w+)`(.*) \|$", flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    paths = _PATH.findall(PAGES[page])
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path
        assert (ROOT / path).is_dir() == path.endswith("/"), path


def test_names_stand_where_they_are_said_to() -> None:
    rows = _ROW.findall(PAGES["where-is"])
    assert len(rows) >= 10
    for path, name, rest in rows:
        text = (ROOT / path).read_text(encoding="utf-8")
        for one in (name, *re.findall(r"and `(\w+)`", rest)):
            assert re.search(rf"^\s*(?:def|class|struct) {one}\b", text, flags=re.MULTILINE), f"{one} in {path}"


def test_the_architecture_names_every_package() -> None:
    packages = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "mmad_bank").rglob("__init__.py")}
    named = {path.rstrip("/") for path in _PATH.findall(PAGES["architecture"])}
    assert packages - {"mmad_bank"} <= named
