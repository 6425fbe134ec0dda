"""Tensors of the Open Inference Protocol v2: JSON, and the binary tensor data extension.

A request is a JSON object; with the extension, tensors' bytes follow it, in the order of the inputs that say
``binary_data_size``, and the header ``Inference-Header-Content-Length`` says how long the JSON is. Answers likewise.
Their texts: inference_rest in the repository kserve/open-inference-protocol, extension_binary_data in that of
triton-inference-server/server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmad_bank.errors import InputError

NUMBERS = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64,
}  # fmt: skip
"""NumPy's types of the protocol's names."""
BYTES = "BYTES"
HEADER = "Inference-Header-Content-Length"
_MOST_TENSORS = 16
_MOST_AXES = 8
_MOST_ELEMENTS = 2**60  # of 8 bytes each, they would not fit an address
_NAMES = {np.dtype(kind): name for name, kind in NUMBERS.items()}


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A request for inference.

    Attributes:
        inputs: Tensors by name.
        outputs: Outputs that are asked for; empty for all.
        id: The client's name of the request, which the answer repeats.
        parameters: Parameters of the request.
        binary: Whether all outputs are wanted as bytes where none is named.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[Wanted] = ()
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    binary: bool = False


def parse_request(body: bytes | memoryview, header_length: str | None = None) -> InferRequest:
    """Read a request.

    Args:
        body: The body.
        header_length: Value of the header that says how long the JSON is, if it is there.

    Raises:
        InputError: It is no request of the protocol; the line says where.

    Example:
        >>> body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]}]}'
        >>> parse_request(body).inputs["x"]
        array([[1. , 2.5]], dtype=float32)
    """
    length = _header_length(header_length, len(body))
    content = _json(bytes(body[:length]))
    parameters = _table(content.get("parameters", {}), "parameters")
    rest, inputs = memoryview(body)[length:], {}
    for one in _tables(content.get("inputs"), "inputs"):
        name = _text(one.get("name"), "inputs: name")
        if name in inputs:
            raise InputError(f"inputs: expected each name once, found {name[:60]!r} again")
        inputs[name], rest = _tensor(name, one, rest)
    if not inputs:
        raise InputError("inputs: expected at least one tensor, found none")
    if len(rest):
        raise InputError(f"inputs: expected binary data of the tensors alone, found {len(rest)} bytes more")
    own = parameters.get("id")
    given = content.get("id", own)
    if given is not None and not isinstance(given, str):
        raise InputError(f"id: expected a text, found {type(given).__name__}")
    binary = _flag(parameters, "binary_data_output", "parameters")
    outputs = [
        _wanted(one, binary) for one in (_tables(content["outputs"], "outputs") if content.get("outputs") else [])
    ]
    return InferRequest(inputs, outputs, given, parameters, binary)


def build_answer(
    facts: Mapping[str, Any], outputs: Mapping[str, np.ndarray], request: InferRequest
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON if bytes follow.

    Args:
        facts: Fields of the answer beside ``outputs``.
        outputs: Tensors by name; texts are arrays of objects.
        request: The request, which says which outputs are wanted, and in which form.

    Example:
        >>> request = InferRequest({}, [Wanted("y", binary=True)])
        >>> body, length = build_answer({"model_name": "m"}, {"y": np.zeros(2, np.float32)}, request)
        >>> len(body) - length
        8
    """
    wanted = request.outputs or [Wanted(name, request.binary) for name in outputs]
    entries, chunks = [], []
    for one in wanted:
        values = outputs[one.name]
        entry: dict[str, Any] = {"name": one.name, "datatype": datatype(values), "shape": list(values.shape)}
        if one.binary:
            chunks.append(_bytes_of(values))
            entry["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            entry["data"] = values.ravel().tolist()
        entries.append(entry)
    head = json.dumps({**facts, "outputs": entries}, allow_nan=False).encode()
    return (head, None) if not chunks else (b"".join([head, *chunks]), len(head))


def datatype(values: np.ndarray) -> str:
    """Return the protocol's name of an array's type.

    Example:
        >>> datatype(np.zeros(1, np.float32)), datatype(np.array(["good"], object))
        ('FP32', 'BYTES')
    """
    return _NAMES.get(values.dtype, BYTES)


def _bytes_of(values: np.ndarray) -> bytes:
    """Return a tensor's bytes, little-endian; of texts, each behind its length."""
    if values.dtype != object:
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    words = [str(word).encode() for word in values.ravel()]
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)


def _header_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= size):
        raise InputError(f"{HEADER}: expected a number up to the body's {size} bytes, found {text[:40]!r}")
    return int(text)


def _json(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError too
        raise InputError(f"body: expected JSON, found something else ({str(error)[:80]})") from None
    return _table(content, "body")


def _tensor(name: str, entry: Mapping[str, Any], rest: memoryview) -> tuple[np.ndarray, memoryview]:
    """Return an input, and the binary data that follow it."""
    where = f"inputs: {name[:60]}"
    kind = NUMBERS.get(_text(entry.get("datatype"), f"{where}: datatype"))
    if kind is None:
        raise InputError(f"{where}: expected a datatype of {', '.join(NUMBERS)}, found {entry['datatype'][:20]!r}")
    shape = _shape(entry.get("shape"), where)
    parameters = _table(entry.get("parameters", {}), f"{where}: parameters")
    if "shared_memory_region" in parameters:
        raise InputError(f"{where}: expected data in the request, found shared memory, which this server does not read")
    size = parameters.get("binary_data_size")
    if size is None:
        return _from_json(entry, kind, shape, where), rest
    expected = math.prod(shape) * np.dtype(kind).itemsize
    if not isinstance(size, int) or isinstance(size, bool) or size != expected:
        raise InputError(f"{where}: expected binary_data_size {expected} by shape and datatype, found {size!r:.40}")
    if "data" in entry:
        raise InputError(f"{where}: expected data or binary_data_size, found both")
    if size > len(rest):
        raise InputError(f"{where}: expected {size} bytes behind the JSON, found {len(rest)}")
    values = np.frombuffer(rest[:size], np.dtype(kind).newbyteorder("<")).reshape(shape)
    return values.astype(kind, copy=False), rest[size:]


def _from_json(entry: Mapping[str, Any], kind: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    data = entry.get("data")
    if not isinstance(data, list):
        raise InputError(f"{where}: expected data, a list of numbers, or binary_data_size, found neither")
    try:
        values = np.array(data)
    except (ValueError, OverflowError, RecursionError):
        raise InputError(f"{where}: expected data of one shape, found lists of different lengths") from None
    wanted = np.dtype(kind).kind
    if values.size and values.dtype.kind not in {"f": "fiu", "b": "b", "i": "iu", "u": "iu"}[wanted]:
        raise InputError(f"{where}: expected data of {entry['datatype']}, found {values.dtype.name[:20]}")
    if values.size != math.prod(shape) or (values.ndim > 1 and values.shape != shape):
        raise InputError(f"{where}: expected data of shape {list(shape)}, found {list(values.shape)}")
    if wanted in "iu" and values.size:
        limits = np.iinfo(kind)
        if values.min() < limits.min or values.max() > limits.max:
            raise InputError(f"{where}: expected data of {entry['datatype']}, found a number out of its range")
    with np.errstate(over="ignore"):  # what does not fit is infinite, and refused as such
        return values.astype(kind).reshape(shape)


def _shape(shape: Any, where: str) -> tuple[int, ...]:
    good = isinstance(shape, list) and len(shape) <= _MOST_AXES
    if not good or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**31 for n in shape):
        raise InputError(f"{where}: expected a shape, up to {_MOST_AXES} numbers, found {shape!r:.60}")
    if math.prod(n for n in shape if n) >= _MOST_ELEMENTS:  # NumPy refuses such an array even if an axis is 0
        raise InputError(f"{where}: expected a shape of fewer than 2**60 elements, found {shape!r:.60}")
    return tuple(shape)


def _wanted(entry: Mapping[str, Any], binary: bool) -> Wanted:
    name = _text(entry.get("name"), "outputs: name")
    parameters = _table(entry.get("parameters", {}), f"outputs: {name[:60]}: parameters")
    for other in ("classification", "shared_memory_region"):
        if other in parameters:
            raise InputError(f"outputs: {name[:60]}: expected none of the extensions but binary data, found {other}")
    return Wanted(name, _flag(parameters, "binary_data", f"outputs: {name[:60]}", binary))


def _flag(parameters: Mapping[str, Any], name: str, where: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {name}: expected true or false, found {value!r:.40}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: expected a text, found {value!r:.40}")
    return value


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _tables(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > _MOST_TENSORS:
        raise InputError(f"{where}: expected a list of up to {_MOST_TENSORS} JSON objects, found {value!r:.60}")
    return [_table(one, where) for one in value]
