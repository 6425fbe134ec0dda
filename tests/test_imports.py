"""The rules of the house: who may import whom, no circles, no other package's private modules, no overlong files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import mmad_bank

ROOT = Path(mmad_bank.__file__).parent
EVERYBODY = {"_internal", "errors", "_core"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "_core": set(),
    "_internal": {"errors"},
    "ops": set(),
    "scoring": set(),
    "calibration": set(),
    "metrics": set(),
    "monitoring": {"calibration"},
    "bank": {"ops", "scoring", "calibration"},
    "features": {"ops"},
    "data": set(),
    "synthetic": {"data", "features"},
    "extraction": {"features", "data"},
    "fusion": {"extraction", "features", "ops"},
    "adaptation": {"extraction", "features", "ops"},
    "methods": {"adaptation", "fusion", "extraction", "features", "data", "bank", "ops", "scoring", "calibration"},
    "evaluation": {"methods", "metrics", "data", "calibration"},
    "exporting": {"methods", "fusion", "features", "data"},
    "distributed": {"methods", "extraction", "features", "data", "bank", "ops", "scoring", "calibration"},
    "tuning": {"bank", "ops", "scoring", "metrics"},
    "integrations": {"bank", "ops", "calibration"},
    "report": {"evaluation", "methods", "data", "calibration"},
    "bench": {"methods", "synthetic", "extraction", "fusion", "features", "data", "bank"},
    "demo": {"report", "evaluation", "methods", "synthetic", "features", "data"},
    "serving": {"report", "methods", "data", "bank", "scoring"},
    "cli": {
        "serving", "demo", "bench", "report", "distributed", "tuning", "exporting", "evaluation", "methods",
        "extraction", "features", "synthetic", "data", "metrics", "monitoring", "bank", "ops", "scoring", "calibration",
    },
}  # fmt: skip
"""What each part of the package may import, beside :data:`EVERYBODY`'s."""
LONGEST = 400


class Import(NamedTuple):
    """One imported module or name: by whom, at which line, from which module."""

    by: str
    line: int
    module: str
    name: str | None

    def __str__(self) -> str:
        return f"{self.by}:{self.line} imports {self.module}" + (f".{self.name}" if self.name else "")


def modules() -> dict[str, Path]:
    """Return every module's file by its name within the package; a package's own is called like it."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[Import]:
    """Yield a module's imports of the package, also those within functions."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmad_bank":
            assert node.level == 0
            base = (node.module or "").removeprefix("mmad_bank").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                whole = inner in MODULES or inner == "_core"
                yield Import(module, node.lineno, inner if whole else base, None if whole else alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "mmad_bank":
                    yield Import(module, node.lineno, alias.name.removeprefix("mmad_bank").removeprefix("."), None)


ALL = [one for module in MODULES for one in imports(module)]


def room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def test_every_part_is_in_the_plan() -> None:
    assert {room(module) for module in MODULES} - {""} == set(ROOMS) - {"_core"}


def test_the_plan_has_no_circle() -> None:
    tuple(TopologicalSorter(ROOMS).static_order())  # raises CycleError


def test_imports_keep_to_the_plan() -> None:
    foreign = [
        str(one)
        for one in ALL
        if room(one.by) and one.module and room(one.module) not in {room(one.by), *EVERYBODY, *ROOMS[room(one.by)]}
    ]
    assert not foreign


def test_no_other_packages_private_module_or_name() -> None:
    """``_internal`` is everybody's; what begins with an underscore otherwise is its own package's."""
    private = []
    for one in ALL:
        parts = one.module.split(".")
        for depth, part in enumerate(parts):
            if part.startswith("_") and part not in EVERYBODY:
                owner = ".".join(parts[:depth])
                private += [str(one)] if not f"{one.by}.".startswith(f"{owner}.") else []
        if one.name is not None and one.name.startswith("_") and not one.name.startswith("__"):
            private += [str(one)] if room(one.module) != room(one.by) else []
    assert not private


def test_modules_are_in_no_circle() -> None:
    """Also by imports within functions. Packages' own modules, which gather names, are left out."""
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    graph = {
        module: {one.module for one in ALL if one.by == module and one.module in MODULES} - packages
        for module in MODULES
        if module not in packages
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("room", ["features", "ops", "bank", "scoring"])
def test_no_samples_below_extraction(room: str) -> None:
    assert "data" not in ROOMS[room]


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.read_text().count("\n") > LONGEST])
def test_long_files_say_why(module: str) -> None:
    """No file above 400 lines without a reason in its head."""
    head = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8"))) or ""
    assert "One class" in head, f"{module} has more than {LONGEST} lines and does not say why"


def test_no_test_imports_another() -> None:
    """What several tests share lies in modules that are no tests; programs in texts count too."""
    for path in Path(__file__).parent.rglob("*.py"):
        found = re.search(r"^\s*(from|import) test_\w+", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert found is None, f"{path}: {found and found[0]}"


def test_test_modules_have_names_of_their_own() -> None:
    """Folders of tests are no packages: pytest takes a second module of one name for the first."""
    names = [path.stem for path in Path(__file__).parent.rglob("*.py") if path.stem not in ("conftest", "__init__")]
    assert sorted(names) == sorted(set(names))
