"""Networks written to ONNX files, with the preparation of pictures before them, and compared with PyTorch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.extras import import_extra
from mmad_bank.errors import InputError
from mmad_bank.exporting._onnx import OPSET, onnx_module
from mmad_bank.exporting.networks import Network
from mmad_bank.exporting.preparing import IMAGES
from mmad_bank.exporting.tiling import tiled_graph
from mmad_bank.features.tiles import TiledExtractor

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
"""Largest difference to PyTorch, relative to the largest value of the output: to 1 if that is smaller, and to 0.01 of
MDSS's branches."""


def onnx_of(network: Network) -> onnx.ModelProto:
    """Return a network as a model of ONNX.

    Raises:
        InputError: PyTorch cannot write it.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    if isinstance(network.module, TiledExtractor):
        assert network.tile is not None
        return tiled_graph(onnx_of(network.tile), network.module)
    for package in ("onnx", "onnxscript"):
        import_extra(package, package, "exporting models", "export")
    shapes = {
        name: {axis: torch.export.Dim(word) for axis, word in network.axes.get(name, {}).items()}
        for name in network.inputs
    }
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network.module, tuple(network.inputs.values()), dynamo=True, opset_version=OPSET,
                input_names=list(network.inputs), output_names=[network.output],
                dynamic_shapes=tuple(shapes.values()),
            )  # fmt: skip
    except Exception as error:  # whatever its many passes raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"model: PyTorch cannot write the network {network.name} to ONNX ({reason[:200]})") from error
    assert program is not None
    return program.model_proto


def with_preparation(model: onnx.ModelProto, preparation: onnx.ModelProto) -> onnx.ModelProto:
    """Put the preparation of pictures before a network of them."""
    preparation.ir_version = model.ir_version
    named = onnx_module("compose").add_prefix(preparation, "preparation/", rename_inputs=False, rename_outputs=False)
    whole = onnx_module("compose").merge_models(named, model, io_map=[(IMAGES, IMAGES)])
    for output in whole.graph.output:
        axis = output.type.tensor_type.shape.dim[0]
        if axis.dim_param:  # one picture at a time: of several, each would need a window of its own
            axis.dim_value = 1
    return whole


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to a file."""
    onnx_module("save_model")(model, str(path))


def difference(path: Path, network: Network) -> float:
    """Return the largest difference between ONNX Runtime and PyTorch, relative as :data:`TOLERANCE` says.

    Args:
        path: File of the network alone.
        network: The network.

    Raises:
        InputError: It is larger than that.
    """
    with torch.no_grad():
        expected: Tensor = network.module(*network.inputs.values())
    found = run(path, {name: value.numpy() for name, value in network.inputs.items()})[network.output]
    scale = max(network.unit, float(expected.abs().max()))
    worst = float(np.abs(found - expected.numpy()).max()) / scale
    if not worst <= TOLERANCE:
        raise InputError(
            f"model: expected the network {network.name} in ONNX Runtime to be within {TOLERANCE:g} of PyTorch, found"
            f" {worst:.3g}"
        )
    return worst


def run(path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a file by ONNX Runtime on the CPU; return its outputs by name."""
    runtime = import_extra("onnxruntime", "onnxruntime", "comparing exported models", "export")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def interface(model: onnx.ModelProto) -> dict[str, Any]:
    """Return names, types and shapes of a model's inputs and outputs, JSON-able; an axis of any length by its name."""
    return {"inputs": _values(model.graph.input), "outputs": _values(model.graph.output)}


def _values(values: Any) -> dict[str, Any]:
    helper = onnx_module("helper")
    return {
        one.name: {
            "dtype": str(helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)),
            "shape": [axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim],
        }
        for one in values
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's lines of progress, and its warnings to programmers, from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
