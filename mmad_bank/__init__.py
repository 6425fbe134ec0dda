"""mmad-bank: memory-bank anomaly detection at the speed of the machine's matrix units.

Importing the package is light: submodules load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {"MemoryBank": "bank", "MultiBank": "bank"}
_SUBMODULES = ("bank", "data", "errors", "features", "fusion", "methods", "metrics", "ops", "scoring")
__all__ = [
    "MemoryBank",
    "MultiBank",
    "__version__",
    "bank",
    "data",
    "errors",
    "features",
    "fusion",
    "methods",
    "metrics",
    "ops",
    "scoring",
]

if TYPE_CHECKING:
    from mmad_bank import bank, data, errors, features, fusion, methods, metrics, ops, scoring
    from mmad_bank.bank import MemoryBank, MultiBank


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"mmad_bank.{_EXPORTS[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"mmad_bank.{name}")
    raise AttributeError(f"module 'mmad_bank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
