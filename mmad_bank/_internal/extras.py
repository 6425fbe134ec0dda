"""Packages that only some functions need."""

from __future__ import annotations

import importlib
from typing import Any

from mmad_bank.errors import MissingExtraError


def import_extra(package: str, module: str, purpose: str) -> Any:
    """Import a module of the extra ``multimodal``, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, "multimodal", purpose) from error
