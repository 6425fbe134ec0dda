"""What the build and the machine say of themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from mmad_bank import _core, ops


def test_facts_are_consistent_and_json() -> None:
    facts = ops.system_info()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    cpu = facts["cpu"]
    assert cpu["in use"] in cpu["can run"]
    assert set(cpu["can run"]) <= set(cpu["compiled"])
    assert cpu["threads"] == torch.get_num_threads()
    assert len(facts["cuda"]["devices"]) == torch.cuda.device_count()
    assert bool(facts["cuda"]["compiled"]) == hasattr(_core, "cuda")
    assert facts["versions"]["torch"] == torch.__version__


def test_the_environment_can_lower_the_instruction_set() -> None:
    script = "from mmad_bank import ops; print(ops.system_info()['cpu']['in use'])"
    environment = {**os.environ, "MMAD_BANK_ISA": "generic"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "generic"


def test_a_missing_faiss_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert ops.system_info()["versions"]["faiss"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device, no need to make one up")
def test_a_device_that_the_kernels_do_not_run_on_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old")
    assert ops.system_info()["cuda"]["devices"] == [{"name": "Old", "architecture": "sm_75", "kernels": "PyTorch"}]
