"""Pages that are made from the code name all of it, and pages about files name what is in the files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from snippets import DOCS

from mmad_bank import methods
from mmad_bank.cli import app

sys.path.append(str(DOCS / "_pages"))
import commands
import parameters

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FORMATS = Path(__file__).parents[1] / "formats"
MODELS = sorted(FORMATS.glob("*/*/model.json"))
FOLDERS = (DOCS / "reference/model-folder.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_all_its_options_on_its_page(name: str) -> None:
    page = commands.page(name)
    assert page.startswith(f"# mmad-bank {name}\n")
    for one in COMMANDS[name].params:
        if one.param_type_name == "option" and not one.hidden:
            row = next(line for line in page.splitlines() if line.startswith(f"| `{one.opts[0]}`"))
            assert row.count(" | ") == 3, row
            assert re.search(r"[A-Z][^|]+\. \|$", row), f"{row}: what it does is no sentence"


def test_repeatable_options_say_so_once() -> None:
    for name in COMMANDS:
        for line in commands.page(name).splitlines():
            assert line.count("several times") <= 1, line
    assert "| `TEXT`, several times |" in commands.page("tune")


def test_the_overview_links_every_command() -> None:
    for name in COMMANDS:
        assert f"({name}.md)" in commands.overview()


@pytest.mark.parametrize("name", methods.names())
def test_a_method_has_all_its_arguments_on_the_page(name: str) -> None:
    method = methods.method_class(name)
    section = re.search(rf"^## {method.__name__}$(.*?)(?=^## |\Z)", parameters.page(), flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| .* \| .+ \| .* \| (.*) \|$", section[1], flags=re.MULTILINE)
    assert tuple(argument for argument, *_ in rows) == method.argument_names()
    for argument, kind, effect in rows:
        assert kind, argument
        assert re.match(r"[A-Z].{9,}\.\)?$", effect), f"{argument}: {effect}"


def test_types_and_choices_are_worded() -> None:
    page = parameters.page()
    assert "| `grid` | 2 integers | 1 to 16384 | `28,28` |" in page
    assert "`m3dm`, `patchcore`, `max`" in page
    assert "typing." not in page
    assert "object at 0x" not in page


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_the_page_of_the_model_folder_names_what_is_in_one(path: Path) -> None:
    for field in json.loads(path.read_text()):
        assert f"`{field}`" in FOLDERS, field
    for file in path.parent.iterdir():
        assert f"`{file.name}{'/' if file.is_dir() else ''}`" in FOLDERS, file.name


def test_every_method_has_a_page_with_figures() -> None:
    for name in methods.names():
        page = (DOCS / f"methods/{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {methods.method_class(name).__name__}\n")
        assert f"<!-- figures: {methods.method_class(name).__name__} -->" in page


def test_figures_are_put_in() -> None:
    pytest.importorskip("matplotlib")
    import method_figures

    page = method_figures.insert("<!-- figures: CFM -->")
    assert "| CFM-M | all | 0.960 | 0.994 | 0.972 | 0.459 | CFM's paper, tables 5, 11 |" in page
    assert "| CFM-T | 42.818 | 48.1 |" in page
    assert "### Ours" in page
    assert "M3DM" not in page


def test_pages_that_code_and_documents_name_exist() -> None:
    root = DOCS.parent
    files = [
        *(path for path in root.glob("*.md") if path.name != "CHANGELOG.md"),
        *(path for folder in ("mmad_bank", "benchmarks", "examples") for path in _texts(root / folder)),
    ]
    named = {page for path in files for page in re.findall(r"docs/[\w/-]+\.md\b", path.read_text(encoding="utf-8"))}
    assert "docs/reference/weights.md" in named
    for page in named:
        assert (root / page).is_file(), page


def _texts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".py", ".md")]
