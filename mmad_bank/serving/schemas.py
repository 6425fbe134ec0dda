"""What answers look like, for the OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Open(BaseModel):
    """A JSON object that may have more fields."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ErrorBody(_Open):
    """Why a request was not served, in one line."""

    error: str


class Live(_Open):
    """The process answers."""

    live: bool


class Ready(_Open):
    """Requests are taken."""

    ready: bool


class ModelReady(_Open):
    """The model can be used."""

    name: str
    ready: bool


class ServerMetadata(_Open):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Open):
    """A tensor that a model takes or gives; -1 in its shape is any number."""

    name: str
    datatype: str
    shape: list[int]
    optional: bool = False


class ModelMetadata(_Open):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Any] = Field(default_factory=dict)


class ModelState(_Open):
    """A model in the index."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str
    kind: Literal["bank", "method"]


class OutputTensor(_Open):
    """A tensor of an answer: ``data``, row by row, or ``parameters.binary_data_size`` bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferAnswer(_Open):
    """An answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    outputs: list[OutputTensor]


class RegionFound(_Open):
    """A region of the map that no normal image has, in the picture's pixels."""

    box: list[int]
    area: int
    peak: float
    place: list[int]
    p_value: float
    area_mm2: float | None
    extent_mm: list[float] | None


class PictureFound(_Open):
    """A PNG in base64; of a map, a pixel's score is low + value / 65535 × (high - low)."""

    png: str
    low: float | None = None
    high: float | None = None


class PredictAnswer(_Open):
    """What a method says of a picture."""

    model: str
    id: str
    score: float
    verdict: Literal["good", "bad"] | None
    p_value: float | None
    normalized_score: float | None
    threshold: float | None
    false_alarm_rate: float | None
    extrapolated: bool | None
    regions: list[RegionFound]
    size: list[int]
    notes: list[str]
    parts: dict[str, float]
    map_range: list[float]
    map_scale: list[float]
    explanation: dict[str, Any]
    pictures: dict[str, PictureFound]


_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    },
}
INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 16},
                        "outputs": {
                            "type": "array",
                            "maxItems": 16,
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                            },
                        },
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": "Inference-Header-Content-Length", "in": "header", "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "Length of the JSON, where tensors' bytes follow it.",
        }
    ],
}  # fmt: skip
"""The request of the protocol, in words of OpenAPI."""
FILES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {
                            "type": "string", "format": "binary",
                            "description": "Picture: PNG, JPEG, BMP, TIFF, WebP, GIF, JPEG 2000, PNM or AVIF.",
                        },
                        "depth": {
                            "type": "string", "format": "binary",
                            "description": "Organized point cloud of the picture, TIFF of H×W×3 floats; or, without a"
                            " picture, scattered points, PLY or PCD.",
                        },
                    },
                }
            }
        },
    }
}  # fmt: skip
"""The request with files."""
WORDS = {
    400: "The request is wrong; the line says where.", 401: "A key is needed.",
    403: "It comes from another site's page.",
    404: "There is no such model.", 405: "The path has other methods.", 413: "It is too large.",
    415: "It is of another type.", 422: "A parameter is wrong.", 500: "The model cannot be used.",
    503: "There is too much to do, or the time is over; come again.",
}  # fmt: skip
"""What statuses mean."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route."""
    return {status: {"model": ErrorBody, "description": WORDS[status]} for status in (401, 403, *statuses)}
