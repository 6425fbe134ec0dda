"""The part runtimes of benchmarks/methods.py, at its smallest size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("timm", "scipy", "openvino", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.slow
def test_it_runs_and_writes_its_results(tmp_path: Path) -> None:
    out = tmp_path / "runtimes.json"
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "runtimes", "--quick", "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (table,) = json.loads(out.read_text())["parts"]["runtimes"]
    rows = {row["what"]: row for row in table["rows"]}
    exact = ["PyTorch, float32", "OpenVINO, float32", "ONNX Runtime, float32"]
    assert list(rows) == [*exact[:2], "OpenVINO, bfloat16", "OpenVINO, int8", exact[2]]
    for name, row in rows.items():
        assert row["fps"] == pytest.approx(1000 / row["median_ms"])
        assert name == exact[0] or row["difference"] < (1e-4 if name in exact else 0.5)
