"""``mmad-bank synth`` and ``mmad-bank prepare``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("tifffile")
pytest.importorskip("scipy")

from data_trees import add_real3d, add_sample
from helpers import PROGRAM, call, refused_at_last

from mmad_bank.data import open_dataset

SMALL = (
    "--image-size", "96", "--train-images", "1", "--validation-images", "0", "--test-images", "2", "--workers", "1"
)  # fmt: skip


def test_synthesise_then_prepare(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    result = call("synth", raw, *SMALL, "--categories", "stud_tray, chip_cookie", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] == 6
    (raw / "stud_tray/test/color/rgb/001.png").write_bytes(b"broken")
    result = call("prepare", raw, "--out", out, "--recipe", "cfm", "--image-size", "64", "--workers", "1", "--json")
    assert result.exit_code == 3, result.output
    facts = json.loads(result.stdout)
    assert (facts["written"], facts["cached"], list(facts["left_out"])) == (5, 0, ["stud_tray/test/color/001"])
    assert (facts["settings"]["pad"], facts["settings"]["size"]) == ("edge", 64)
    assert result.stderr.startswith("left out: ")
    assert result.stderr.count("\n") == 1
    assert open_dataset(out, "stud_tray")[0].size == (64, 64)
    again = call("prepare", raw, "--out", out, "--recipe", "cfm", "--image-size", "64", "--workers", "1")
    assert again.exit_code == 3
    assert "done before  5 samples" in again.stdout
    twice = call("prepare", out / "stud_tray", "--recipe", "keep", "--out", tmp_path / "twice")
    assert (twice.exit_code, twice.stdout, (tmp_path / "twice").exists()) == (2, "", False)
    line = (
        f"error: {out / 'stud_tray'}: is prepared already (64 pixels, background plane); expected the raw data: {raw}"
    )
    assert twice.stderr == f"{line}\n"


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
        assert message in refused_at_last(*arguments)


def test_a_folder_of_no_splits_name_is_said(tmp_path: Path) -> None:
    for split in ("train", "holdout"):
        add_sample(tmp_path / "raw/part" / split / "good")
    result = call("prepare", tmp_path / "raw", "--out", tmp_path / "out", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert "prepared     1 samples" in result.stdout
    folder = tmp_path / "raw/part/holdout"
    assert result.stderr == f"note: {folder} is not read; a split is named train, validation (val, valid) or test\n"


def test_names_that_are_no_utf_8_are_escaped(tmp_path: Path) -> None:
    """In a process of its own: the streams of tests are not those of a terminal."""
    root = tmp_path / os.fsdecode(b"\xffraw")
    add_sample(root / "part/train/good")
    broken = root / "part/train/good/rgb" / os.fsdecode(b"\xfe.png")
    broken.write_bytes(b"broken")
    command = [*PROGRAM, "prepare", root, "--out", root.with_name("out"), "--workers", "1"]
    result = subprocess.run([*command, "--json"], capture_output=True, check=False)
    assert result.returncode == 3, result.stderr
    assert b"left out" in result.stderr
    assert b"\\udcfe.png: cannot be read" in result.stderr
    assert b"Traceback" not in result.stderr
    assert list(json.loads(result.stdout)["failed"]) == [f"part/train/good/{broken.stem}"]


def test_a_damaged_file_of_two_samples_is_named_once(tmp_path: Path) -> None:
    add_real3d(tmp_path / "raw" / "duck", test=1, n=500)
    cloud = tmp_path / "raw" / "duck" / "train" / "1_template.pcd"
    cloud.write_bytes(cloud.read_bytes()[:-100])
    options = ("--image-size", 32, "--workers", 1)
    result = call("prepare", tmp_path / "raw", "--out", tmp_path / "out", *options)
    assert result.exit_code == 3, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"left out: {cloud}: ")
    again = json.loads(call("prepare", tmp_path / "raw", "--out", tmp_path / "out", *options, "--json").stdout)
    assert len(again["left_out"]) == 2, "it shows the part from both sides"
    cloud.with_name("0_template.pcd").unlink()
    none = call("prepare", tmp_path / "raw" / "duck", "--out", tmp_path / "none", *options)
    assert none.stderr.count(f"left out: {cloud}") == 1
