"""The packages that write and run ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmad_bank._internal.extras import import_extra

OPSET = 18
"""Version of ONNX's operators; runtimes of 2023 and later have them."""


def onnx_module(name: str) -> Any:
    """Return a module or class of the package onnx, or say which extra brings it."""
    onnx = import_extra("onnx", "onnx", "exporting models", "export")
    return getattr(onnx, name)


class Graph:
    """A graph that grows node by node; constants are made where they are used.

    Args:
        prefix: What its names begin with; those of a loop's body may not be those of the graph around it.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(onnx_module("numpy_helper").from_array(np.array(value, dtype), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        output = output or f"{self.prefix}{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx_module("helper").make_node(kind, list(inputs), [output], **attributes))
        return output

    def calculate(self, kind: str, left: str, right: str | int) -> str:
        """Add an operation on int64 values of two inputs."""
        return self.add(kind, [left, right if isinstance(right, str) else self.constant(right)])

    def rounded_up(self, left: str, divisor: str | int) -> str:
        """Divide int64 scalars that are not negative, rounding up."""
        less = self.calculate("Sub", self.calculate("Add", left, divisor), 1)
        return self.calculate("Div", less, divisor)
