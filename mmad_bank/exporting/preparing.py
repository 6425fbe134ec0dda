"""The preparation of pictures as a graph of ONNX: padding to a square, and Pillow's bicubic resizing.

Pillow resizes along one axis after the other and rounds to 8 bits in between. Either pass is a product with a matrix of
the cubic's weights, which the graph makes for the size that comes: ONNX's own ``Resize`` has a low-pass filter only as
an option, ``antialias``, which most runtimes pass over without a word. Weights are float32's here and fixed-point
numbers in Pillow, so fewer than one value in two thousand is another, by one level of 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmad_bank.data.recipes import Preprocessing
from mmad_bank.exporting._onnx import OPSET, Graph, onnx_module

if TYPE_CHECKING:
    import onnx

PICTURE, IMAGES, WINDOW = "picture", "images", "window"
"""Names of the graph's input (1, H, W, 3) uint8 and outputs (1, 3, S, S) uint8 and (4,) int64."""


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
    graph = Graph()
    shape = graph.add("Shape", [PICTURE])
    height, width = (graph.add("Gather", [shape, graph.constant(axis)]) for axis in (1, 2))
    longest = graph.add("Max", [height, width])
    multiple = settings.pad_multiple
    side = longest if multiple == 1 else graph.calculate("Mul", graph.rounded_up(longest, multiple), multiple)
    before = [graph.calculate("Div", graph.calculate("Sub", side, length), 2) for length in (height, width)]
    planes = graph.add("Transpose", [PICTURE], perm=[0, 3, 1, 2])
    square = _padded(graph, planes, settings.pad, side, before, (height, width))
    floats = graph.add("Cast", [square], to=kinds.FLOAT)
    weights = _weights(graph, side, size)
    # Columns first, as Pillow does: what is between the passes is rounded.
    columns = _rounded(graph, graph.add("MatMul", [floats, graph.add("Transpose", [weights], perm=[1, 0])]))
    rows = _rounded(graph, graph.add("MatMul", [weights, columns]))
    graph.add("Cast", [rows], IMAGES, to=kinds.UINT8)
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


def _weights(graph: Graph, side: str, size: int) -> str:
    """Return the weights (size, side) by which pixels of a side of any length make those of the resized one.

    Pixel x lies (x + ½)·size/side - (i + ½) pixels from pixel i of the result. Where the picture shrinks, the cubic is
    as wide as it does. In halves of a pixel times both sizes, distances are whole numbers, which float32 holds.
    """
    kinds = onnx_module("TensorProto")
    zero, one = graph.constant(0), graph.constant(1)
    pixels = graph.add("Range", [zero, side, one])
    centers = graph.calculate("Mul", graph.calculate("Add", graph.calculate("Mul", pixels, 2), 1), size)
    wanted = graph.constant((2 * np.arange(size) + 1)[:, None])
    distances = graph.calculate("Sub", centers, graph.calculate("Mul", wanted, side))
    unit = graph.calculate("Mul", graph.calculate("Max", side, size), 2)
    far = graph.add("Abs", [graph.add("Div", [graph.add("Cast", [one], to=kinds.FLOAT) for one in (distances, unit)])])

    def polynomial(*factors: float) -> str:
        """Add a polynomial of the distances, by Horner's rule."""
        value = graph.constant(factors[0], np.float32)
        for factor in factors[1:]:
            value = graph.add("Add", [graph.add("Mul", [value, far]), graph.constant(factor, np.float32)])
        return value

    near = graph.add("Less", [far, graph.constant(1, np.float32)])
    within = graph.add("Less", [far, graph.constant(2, np.float32)])
    outer = graph.add("Where", [within, polynomial(-0.5, 2.5, -4, 2), graph.constant(0, np.float32)])
    weights = graph.add("Where", [near, polynomial(1.5, -2.5, 0, 1), outer])
    total = graph.add("ReduceSum", [weights, graph.constant([1])], keepdims=1)  # at the border less than 1 is left
    return graph.add("Div", [weights, total])


def _rounded(graph: Graph, values: str) -> str:
    """Round to levels of 8 bits, halves upward."""
    whole = graph.add("Floor", [graph.add("Add", [values, graph.constant(0.5, np.float32)])])
    return graph.add("Clip", [whole, graph.constant(0, np.float32), graph.constant(255, np.float32)])


def _padded(graph: Graph, planes: str, pad: str, side: str, before: Sequence[str], lengths: Sequence[str]) -> str:
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


def _vector(graph: Graph, scalars: Sequence[str], output: str = "") -> str:
    """Join int64 scalars to a vector."""
    axes = graph.constant([0])
    return graph.add("Concat", [graph.add("Unsqueeze", [one, axes]) for one in scalars], output, axis=0)
