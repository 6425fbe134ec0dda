"""The preparation of pictures as a graph of ONNX: padding to a square, and Pillow's bicubic resizing.

Pillow resizes along one axis after the other, rounds to 8 bits in between, and leaves out what lies beyond the border.
ONNX's ``Resize`` of 8-bit values with ``antialias`` and ``exclude_outside`` does the same but for the last digit: about
one value in a thousand is another by one level of 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmad_bank.data.recipes import Preprocessing
from mmad_bank.exporting._onnx import OPSET, onnx_module

if TYPE_CHECKING:
    import onnx

PICTURE, IMAGES, WINDOW = "picture", "images", "window"
"""Names of the graph's input (1, H, W, 3) uint8 and outputs (1, 3, S, S) uint8 and (4,) int64."""


class _Graph:
    """A graph that grows node by node; constants are made where they are used."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx_module("numpy_helper").from_array(np.array(value, dtype), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx_module("helper").make_node(kind, list(inputs), [output], **attributes))
        return output

    def calculate(self, kind: str, left: str, right: str | int) -> str:
        """Add an operation on int64 values of two inputs."""
        return self.add(kind, [left, right if isinstance(right, str) else self.constant(right)])

    def rounded_up(self, left: str, divisor: str | int) -> str:
        """Divide int64 scalars that are not negative, rounding up."""
        less = self.calculate("Sub", self.calculate("Add", left, divisor), 1)
        return self.calculate("Div", less, divisor)


def preparation_graph(settings: Preprocessing, size: int, grid: tuple[int, int]) -> onnx.ModelProto:
    """Return a model that prepares a picture as :func:`mmad_bank.data.preprocess` does, and says what shows it.

    Args:
        settings: The preparation; its background is kept.
        size: Side of the prepared square.
        grid: (h, w) of the patches over it.

    Returns:
        A model with the input ``picture`` (1, H, W, 3) uint8, RGB, and the outputs ``images`` (1, 3, size, size) uint8
        and ``window`` (4,) int64: first row, row behind the last, first column, column behind the last, of the patches
        that show the picture; the others are padding.
    """
    helper, kinds = onnx_module("helper"), onnx_module("TensorProto")
    graph = _Graph()
    shape = graph.add("Shape", [PICTURE])
    height, width = (graph.add("Gather", [shape, graph.constant(axis)]) for axis in (1, 2))
    longest = graph.add("Max", [height, width])
    multiple = settings.pad_multiple
    side = longest if multiple == 1 else graph.calculate("Mul", graph.rounded_up(longest, multiple), multiple)
    before = [graph.calculate("Div", graph.calculate("Sub", side, length), 2) for length in (height, width)]
    planes = graph.add("Transpose", [PICTURE], perm=[0, 3, 1, 2])
    square = _padded(graph, planes, settings.pad, side, before, (height, width))
    sizes = graph.constant([1, 3, size, size])
    graph.add(
        "Resize", [square, "", "", sizes], IMAGES, mode="cubic", cubic_coeff_a=-0.5, antialias=1, exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    edges = []
    for first, length, cells in zip(before, (height, width), grid, strict=True):
        last = graph.calculate("Mul", graph.calculate("Add", first, length), cells)
        edges += [graph.calculate("Div", graph.calculate("Mul", first, cells), side), graph.rounded_up(last, side)]
    _vector(graph, edges, WINDOW)
    return helper.make_model(
        helper.make_graph(
            graph.nodes, "preparation",
            [helper.make_tensor_value_info(PICTURE, kinds.UINT8, [1, "height", "width", 3])],
            [
                helper.make_tensor_value_info(IMAGES, kinds.UINT8, [1, 3, size, size]),
                helper.make_tensor_value_info(WINDOW, kinds.INT64, [4]),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
    )  # fmt: skip


def _padded(graph: _Graph, planes: str, pad: str, side: str, before: Sequence[str], lengths: Sequence[str]) -> str:
    """Put planes (1, 3, H, W) into the middle of a square, as :attr:`Preprocessing.pad` says."""
    if pad == "zero":
        zero = graph.constant(0)
        behind = [
            graph.calculate("Sub", graph.calculate("Sub", side, length), first)
            for length, first in zip(lengths, before, strict=True)
        ]
        return graph.add("Pad", [planes, _vector(graph, [zero, zero, *before, zero, zero, *behind])], mode="constant")
    # ONNX mirrors a picture once; NumPy as often as it takes, which a narrow picture needs: so by the places.
    for axis, (first, length) in enumerate(zip(before, lengths, strict=True), 2):
        places = graph.add("Range", [graph.constant(0), side, graph.constant(1)])
        places = graph.calculate("Sub", places, first)
        last = graph.calculate("Sub", length, 1)
        if pad == "reflect":
            period = graph.calculate("Max", graph.calculate("Mul", last, 2), 1)
            places = graph.calculate("Mod", places, period)  # of the divisor's sign: none is negative
            places = graph.calculate("Min", places, graph.calculate("Sub", period, places))
        places = graph.calculate("Max", graph.calculate("Min", places, last), 0)
        planes = graph.add("Gather", [planes, places], axis=axis)
    return planes


def _vector(graph: _Graph, scalars: Sequence[str], output: str = "") -> str:
    """Join int64 scalars to a vector."""
    axes = graph.constant([0])
    return graph.add("Concat", [graph.add("Unsqueeze", [one, axes]) for one in scalars], output, axis=0)
