"""The extractor over tiles as a graph of ONNX: a loop over the rows of tiles, in it a loop over the tiles of a row.

The network is in the graph once and sees one tile at a time, so that its layers take the memory of one tile. The
weights of :class:`mmad_bank.features.tiles.TiledExtractor` are products of a weight by row and one by column, so that
blending is a product with a matrix along columns, of each row of tiles, and one along rows in the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmad_bank.exporting._onnx import Graph, onnx_module
from mmad_bank.features.tiles import TiledExtractor, blending, starts

if TYPE_CHECKING:
    import onnx

_OF_TILE = "tile/"


def tiled_graph(network: onnx.ModelProto, tiled: TiledExtractor) -> onnx.ModelProto:
    """Return a model that describes whole images by a network of tiles.

    Args:
        network: Model of the network: ``images`` (batch, 3, tile, tile) uint8 to ``features`` (batch, P, D).
        tiled: The extractor over tiles.

    Returns:
        A model with the input ``images`` (batch, 3, S, S) uint8 and the output ``features`` (batch, h·w, D).
    """
    helper, kinds = onnx_module("helper"), onnx_module("TensorProto")
    side = starts(tiled.image_size, tiled.tile, tiled.overlap)
    (h, w), (rows, _), dim = tiled.grid, tiled.tile_grid, tiled.dim
    by_row, by_column = (blending(tiled.image_size, tiled.tile, tiled.overlap, n).numpy() for n in tiled.tile_grid)
    graph = Graph()
    places = graph.constant(side), graph.constant(np.arange(tiled.tile))
    strips = _loop(graph, len(side), _row_of_tiles(network, tiled, places, graph.constant(by_column, np.float32)))
    by_image = graph.add("Transpose", [strips], perm=[1, 0, 2, 3, 4])
    table = graph.add("Reshape", [by_image, graph.constant([0, len(side) * rows, w * dim])])
    blended = graph.add("MatMul", [graph.constant(by_row, np.float32), table])
    graph.add("Reshape", [blended, graph.constant([0, h * w, dim])], "features")
    whole = helper.make_graph(
        graph.nodes, "tiles",
        [helper.make_tensor_value_info("images", kinds.UINT8, ["batch", 3, tiled.image_size, tiled.image_size])],
        [helper.make_tensor_value_info("features", kinds.FLOAT, ["batch", h * w, dim])],
        graph.constants,
    )  # fmt: skip
    return helper.make_model(
        whole, opset_imports=network.opset_import, functions=network.functions, ir_version=network.ir_version
    )


def _row_of_tiles(
    network: onnx.ModelProto, tiled: TiledExtractor, places: tuple[str, str], by_column: str
) -> onnx.GraphProto:
    """Return the body of the loop over rows: features (batch, tile's h, w, D) of a row of tiles, blended along it."""
    row = Graph("row/")
    strip = _cut(row, "images", places, 2)
    (h, w), dim, n = tiled.tile_grid, tiled.dim, len(starts(tiled.image_size, tiled.tile, tiled.overlap))
    tiles = _loop(row, n, _tile(network, tiled, places, strip))
    joined = row.add("Transpose", [tiles], perm=[1, 2, 0, 3, 4])
    joined = row.add("Reshape", [joined, row.constant([0, h, n * w, dim])])
    row.add("MatMul", [by_column, joined], "row/features")
    return _body(row, "row/features", ["batch", h, tiled.grid[1], dim])


def _tile(network: onnx.ModelProto, tiled: TiledExtractor, places: tuple[str, str], strip: str) -> onnx.GraphProto:
    """Return the body of the loop over a row's tiles: features (batch, h, w, D) of a tile."""
    own = onnx_module("compose").add_prefix(network, _OF_TILE)
    (h, w), dim = tiled.tile_grid, tiled.dim
    tile = Graph("column/")
    tile.add("Identity", [_cut(tile, strip, places, 3)], own.graph.input[0].name)
    tile.nodes.extend(own.graph.node)
    tile.constants.extend(own.graph.initializer)
    tile.add("Reshape", [own.graph.output[0].name, tile.constant([0, h, w, dim])], "column/features")
    return _body(tile, "column/features", ["batch", h, w, dim])


def _cut(graph: Graph, images: str, places: tuple[str, str], axis: int) -> str:
    """Cut a tile's pixels along an axis; the loop's number says which tile's."""
    start, within = places
    first = graph.add("Gather", [start, f"{graph.prefix}number"])
    return graph.add("Gather", [images, graph.calculate("Add", within, first)], axis=axis)


def _loop(graph: Graph, times: int, body: Any) -> str:
    """Add a loop, and return what its body gives, one after the other along a new first axis."""
    return graph.add("Loop", [graph.constant(times), graph.constant(True, np.bool_)], body=body)


def _body(graph: Graph, output: str, shape: list[str | int]) -> Any:
    """Return a loop's body, which never ends the loop by itself."""
    helper, kinds = onnx_module("helper"), onnx_module("TensorProto")
    number, go_on, going_on = (f"{graph.prefix}{word}" for word in ("number", "go_on", "going_on"))
    graph.add("Identity", [go_on], going_on)
    return helper.make_graph(
        graph.nodes, f"{graph.prefix}body",
        [
            helper.make_tensor_value_info(number, kinds.INT64, []),
            helper.make_tensor_value_info(go_on, kinds.BOOL, []),
        ],
        [
            helper.make_tensor_value_info(going_on, kinds.BOOL, []),
            helper.make_tensor_value_info(output, kinds.FLOAT, shape),
        ],
        graph.constants,
    )  # fmt: skip
