"""The packages that write and run ONNX."""

from __future__ import annotations

from typing import Any

from mmad_bank._internal.extras import import_extra

OPSET = 18
"""Version of ONNX's operators; runtimes of 2023 and later have them."""


def onnx_module(name: str) -> Any:
    """Return a module or class of the package onnx, or say which extra brings it."""
    onnx = import_extra("onnx", "onnx", "exporting models", "export")
    return getattr(onnx, name)
