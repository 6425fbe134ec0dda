"""Packages that only some functions need."""

from __future__ import annotations

import importlib
from typing import Any

from mmad_bank.errors import MissingExtraError


def import_extra(package: str, module: str, purpose: str, extra: str = "multimodal") -> Any:
    """Import a module of an extra, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, extra, purpose) from error
