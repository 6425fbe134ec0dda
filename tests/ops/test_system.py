"""What the build and the machine say of themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from helpers import good

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


def test_the_packages_of_the_extras_are_named_without_importing_them() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    brought = {
        re.split(r"[>=;\[]", word)[0]
        for extra in ("multimodal", "demo", "finetune")
        for word in re.findall(r'"([^"]+)"', re.findall(rf"^{extra} = \[(.*)\]$", text, flags=re.MULTILINE)[0])
    } - {"mmad-bank"}
    versions = ops.system_info()["versions"]
    assert set(versions) == {"torch", "faiss"} | brought
    script = (
        "import sys; from mmad_bank import ops; ops.system_info();"
        "print(*{'timm', 'torchvision', 'open3d', 'scipy', 'sklearn', 'matplotlib', 'skimage'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_versions_are_those_installed_and_none_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name not in ("timm", "open3d-cpu"):
            raise metadata.PackageNotFoundError(name)
        return {"timm": "1.2", "open3d-cpu": "0.19"}[name]

    monkeypatch.setattr(metadata, "version", version)
    versions = ops.system_info()["versions"]
    assert (versions["timm"], versions["open3d"], versions["tifffile"]) == ("1.2", "0.19", None)
    text = good("info", "--system")
    assert re.search(r"timm: 1\.2\b", text)
    assert "tifffile: not installed" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device, no need to make one up")
def test_a_device_that_the_kernels_do_not_run_on_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old")
    assert ops.system_info()["cuda"]["devices"] == [{"name": "Old", "architecture": "sm_75", "kernels": "PyTorch"}]
