"""docs/how-to/feature-dumps.md's examples run, and it names all fields and columns."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from helpers import good

from mmad_bank.bank import MemoryBank
from mmad_bank.cli._scoring import _COLUMNS

PAGE = (Path(__file__).parents[2] / "docs/how-to/feature-dumps.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```sh\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize(("program", "commands"), EXAMPLES, ids=["pytorch", "timm"])
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, commands: str) -> None:
    if "timm" in program:
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "feature-dumps.md", "exec"), {})
    for line in commands.strip().splitlines():
        words = shlex.split(line)
        assert words[0] == "mmad-bank"
        good(*words[1:])
    (bank,) = (MemoryBank.load(path) for path in tmp_path.glob("*.bank"))
    assert bank.provenance([0])[0].name == "good/000"
    assert bank.sources[0].grid is not None
    if "timm" not in program:
        assert bank.extractor == "my network, layers 1 and 2"
        with (tmp_path / "normal.csv").open(newline="", encoding="utf-8") as file:
            assert [row["name"] for row in csv.DictReader(file)] == [f"good/{i:03}" for i in range(6)]


def test_all_columns_and_fields_are_named() -> None:
    for name in (*_COLUMNS, "extractor", "ids", "grid", "dim", "layout", "dumps"):
        assert f"`{name}`" in PAGE
