"""``mmad-bank synth`` and ``mmad-bank prepare``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("tifffile")
pytest.importorskip("scipy")

from mmad_bank.cli import app
from mmad_bank.data import open_dataset

SMALL = ("--size", "96", "--train", "1", "--validation", "0", "--test", "2", "--workers", "1")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_synthesise_then_prepare(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    result = call("synth", raw, *SMALL, "--categories", "stud_tray, chip_cookie", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] == 6
    (raw / "stud_tray/test/color/rgb/001.png").write_bytes(b"broken")
    result = call("prepare", raw, "--out", out, "--recipe", "cfm", "--size", "64", "--workers", "1", "--json")
    assert result.exit_code == 3, result.output
    facts = json.loads(result.stdout)
    assert (facts["written"], facts["cached"], list(facts["left_out"])) == (5, 0, ["stud_tray/test/color/001"])
    assert (facts["settings"]["pad"], facts["settings"]["size"]) == ("edge", 64)
    assert result.stderr.startswith("left out: ")
    assert result.stderr.count("\n") == 1
    assert open_dataset(out, "stud_tray")[0].size == (64, 64)
    again = call("prepare", raw, "--out", out, "--recipe", "cfm", "--size", "64", "--workers", "1")
    assert again.exit_code == 3
    assert "done before  5 samples" in again.stdout


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    part = tmp_path / "raw" / "part" / "train" / "good"
    for name in ("rgb", "xyz"):
        (part / name).mkdir(parents=True)
    (part / "rgb" / "000.png").write_bytes(b"broken")
    for arguments, message in (
        (("synth", tmp_path, *SMALL), "expected a new or empty folder, found one that holds files"),
        (("synth", tmp_path / "new", "--categories", "moon"), "categories: expected one of"),
        (("prepare", tmp_path / "images", "--out", tmp_path / "out"), "found nothing"),
        (("prepare", tmp_path / "nowhere", "--out", tmp_path / "out"), "expected a folder with a data set"),
        (("prepare", tmp_path / "raw", "--out", tmp_path / "raw"), "expected a folder outside the data set"),
        (("prepare", tmp_path / "raw", "--out", tmp_path / "out"), "found none of 1 that can be used"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        last = result.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last
        assert "Traceback" not in result.stderr
