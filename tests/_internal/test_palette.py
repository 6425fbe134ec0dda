"""One place for colours, and one for the names of sections of the time."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import mmad_bank
from mmad_bank._internal import palette, sections

PACKAGE = Path(mmad_bank.__file__).parent
BENCHMARKS = PACKAGE.parent / "benchmarks"


def sources(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*.py")]


def test_no_colour_of_the_palette_is_written_out_elsewhere() -> None:
    own = {value for value in vars(palette).values() if isinstance(value, str) and re.fullmatch("#[0-9a-f]{6}", value)}
    assert len(own) == 18, "each colour has one name"
    found = {
        f"{path.name}: {colour}"
        for path in sources(PACKAGE, BENCHMARKS)
        if path.name != "palette.py"
        for colour in own & set(re.findall(r"#[0-9a-f]{6}\b", path.read_text(encoding="utf-8").lower()))
    }
    assert not found


def test_the_pages_style_has_the_same_colours() -> None:
    style = resources.files("mmad_bank.report").joinpath("style.css").read_text(encoding="utf-8")
    light = style[: style.index("@media")]
    printed = style[style.index("@media print") :]
    for where, names in ((light, ("ink", "soft", "faint", "rule", "bad")), (printed, ("ink", "soft", "faint", "rule"))):
        colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", where))
        for name in names:
            assert colours[name] == getattr(palette, name.upper()), name


def test_every_section_has_a_colour_of_its_own() -> None:
    names = {value for name, value in vars(sections).items() if name.isupper()}
    assert {*names, sections.features_of("rgb"), sections.features_of("xyz")} == set(palette.SECTIONS)
    assert len(set(palette.SECTIONS.values())) == len(palette.SECTIONS)
    assert palette.section_colour(sections.SEARCH) == palette.ORANGE
    assert palette.section_colour("one's own") == palette.section_colour("one's own")
    assert palette.section_colour("one's own") not in palette.SECTIONS.values()


def test_sections_are_named_by_the_constants() -> None:
    timed = re.compile(r"\btimed\(([^)]+)\)?")
    found = {
        f"{path.name}: {name}"
        for path in sources(PACKAGE)
        if path.name not in ("timing.py", "sections.py")
        for name in timed.findall(path.read_text(encoding="utf-8"))
        if not name.startswith(("sections.", "seconds, "))  # the demo times its own steps
    }
    assert not found
