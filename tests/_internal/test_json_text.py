"""JSON that holds names of any bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmad_bank._internal.json_text import json_text


@pytest.mark.parametrize("name", ["a", "é 零", os.fsdecode(b"\xff.png")])
def test_names_come_back(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json_text({"name": name}), encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": name}


def test_names_of_all_languages_stand_as_they_are() -> None:
    assert "é 零" in json_text(["é 零"])
