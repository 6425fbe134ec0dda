"""What the build and the machine say of themselves."""

from __future__ import annotations

import json

import pytest
import torch

import mmad_bank
from mmad_bank import _core, ops


def test_facts_are_consistent_and_json() -> None:
    facts = ops.system_info()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["cpu"]["in_use"] in facts["cpu"]["compiled"]
    assert facts["cpu"]["best"] in facts["cpu"]["compiled"]
    assert facts["cpu"]["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(facts["versions"]["torch"].split("+")[0])
    assert bool(facts["cuda"]["architectures"]) == facts["cuda"]["compiled"]
    assert len(facts["cuda"]["devices"]) == torch.cuda.device_count()
    assert facts["versions"]["mmad-bank"] == mmad_bank.__version__


def test_missing_packages_are_none() -> None:
    from mmad_bank.ops import system

    assert system._version("no-such-package-of-mmad-bank") is None


def test_a_device_tells_whether_the_kernels_run_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, total_memory = "Test", 9, 0, 1 << 30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    (device,) = ops.system_info()["cuda"]["devices"]
    assert device == {"name": "Test", "capability": "9.0", "memory_bytes": 1 << 30, "kernels": device["kernels"]}
    if not hasattr(_core, "cuda") or not torch.cuda.is_available():
        assert device["kernels"] is False
