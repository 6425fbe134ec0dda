"""The GPU benchmark's own code, run on the CPU with emulated kernels and tiny sizes: what it measures means nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmad_bank.ops import _dispatch
from mmad_bank.ops._cuda import device as device_module

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "csrc"))
import cuda_emulator


def run_once(contestants: dict[str, Callable[[], object]], _: int) -> dict[str, float]:
    for work in contestants.values():
        work()
    return dict.fromkeys(contestants, 1.0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("pybind11")
    try:
        cuda_emulator.find_compiler()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    monkeypatch.setattr(device_module, "native", cuda_emulator.load(ROOT / "build" / "cuda_emulated"))
    monkeypatch.setattr(device_module, "stream_of", lambda where: (0, 0))
    monkeypatch.setattr(device_module, "current", lambda where: contextlib.nullcontext())
    monkeypatch.setattr(_dispatch, "free_memory", lambda where: 1 << 40)
    for name, value in {"synchronize": None, "mem_get_info": (0, 0), "memory_reserved": 0, "empty_cache": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "emulated device")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "captured", lambda index, queries, k: lambda: index.search(queries, k))
    monkeypatch.setattr(module, "alternate_ms", run_once)
    monkeypatch.setattr(module, "CHECKED_PICKS", 20)
    return module


def tiny(gpu: Any) -> Any:
    return gpu.Sizes(
        knn=((30, 150, 24, 1), (30, 150, 24, 33)),
        selection=(300, 16, 30),
        bagel=(300, 16, 30),
        images=1,
        clouds=(2, 300, 12, 16, 24),
        searches=3,
        repeated=(30, 150, 24),
        loop_picks=3,
    )


@pytest.mark.parametrize("part", ["knn", "k_center", "host_memory", "score", "points", "growth"])
def test_part(gpu: Any, part: str) -> None:
    run = gpu.Run(tiny(gpu), 1)
    gpu.run_part(run, part)
    failed = [row for row in run.targets if row["what"] == f"part {part}"]
    assert not failed
    exact = [
        row for row in run.targets if "float64" in row["what"] or "same rows" in row["what"] or "CPU" in row["what"]
    ]
    assert [row["met"] for row in exact] == ["yes"] * {"k_center": 1, "host_memory": 4, "score": 2}.get(part, 0)
    assert part == "growth" or all(table.rows for table in run.tables[part])
    assert len(gpu.targets_table(run).rows) == len(run.targets) > 0


def test_a_part_that_fails_is_a_target_that_was_missed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "run_points", fail)
    run = gpu.Run(tiny(gpu), 1)
    gpu.run_part(run, "points")
    assert run.targets == [
        {"what": "part points", "wanted": "runs", "measured": "RuntimeError: out of memory", "met": "NO"}
    ]


def test_every_part_is_there(gpu: Any) -> None:
    assert all(callable(getattr(gpu, f"run_{name}")) for name in gpu.PARTS)
    assert all(name in gpu.__doc__ for name in gpu.PARTS)
