"""The Open Inference Protocol v2 over HTTP: health, metadata, inference, and the model repository extension."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from mmad_bank import __version__
from mmad_bank.errors import InputError
from mmad_bank.serving import schemas
from mmad_bank.serving.backend import Backend
from mmad_bank.serving.bodies import announced, read_body
from mmad_bank.serving.models import VERSION, Answer, Card, Work, bank_work, check_inputs, check_wanted
from mmad_bank.serving.problems import Problem
from mmad_bank.serving.tensors import HEADER, InferRequest, build_answer, parse_request

_LONG = 65536  # bytes of JSON that are read or written beside the event loop
_EXTENSIONS = ["binary_tensor_data", "model_repository"]


def health_routes(backend: Backend) -> APIRouter:
    """Return the routes of health and of the server itself."""
    router = APIRouter(tags=["health"])

    @router.get("/v2", responses={200: {"model": schemas.ServerMetadata}, **schemas.errors()})
    async def server_metadata() -> Response:
        """Say what the server is."""
        return JSONResponse({"name": "mmad-bank", "version": __version__, "extensions": _EXTENSIONS})

    @router.get("/v2/health/live", responses={200: {"model": schemas.Live}})
    async def live() -> Response:
        """Say that the process answers."""
        return JSONResponse({"live": True})

    @router.get(
        "/v2/health/ready",
        responses={200: {"model": schemas.Ready}, 503: {"model": schemas.Ready, "description": "It is stopping."}},
    )
    async def ready() -> Response:
        """Say whether requests are taken."""
        return JSONResponse({"ready": not backend.stopping}, 503 if backend.stopping else 200)

    return router


def model_routes(backend: Backend) -> APIRouter:
    """Return the routes of models: metadata, readiness, inference."""
    router = APIRouter(tags=["models"])
    found, wrong = schemas.errors(404, 500, 503), schemas.errors(400, 404, 413, 415, 500, 503)

    @router.get("/v2/models/{name}", responses={200: {"model": schemas.ModelMetadata}, **found})
    @router.get("/v2/models/{name}/versions/{version}", responses={200: {"model": schemas.ModelMetadata}, **found})
    async def metadata(name: str, version: str = VERSION) -> Response:
        """Say what a model takes and gives."""
        _check_version(version)
        card = await backend.card(name)
        content = {
            "name": name, "versions": [VERSION], "platform": card.platform,
            "inputs": [one.as_json() for one in card.inputs], "outputs": [one.as_json() for one in card.outputs],
            "parameters": dict(card.facts),
        }  # fmt: skip
        return JSONResponse(content)

    @router.get("/v2/models/{name}/ready", responses={200: {"model": schemas.ModelReady}, **found})
    @router.get("/v2/models/{name}/versions/{version}/ready", responses={200: {"model": schemas.ModelReady}, **found})
    async def model_ready(name: str, version: str = VERSION) -> Response:
        """Say that a model can be used."""
        _check_version(version)
        await backend.card(name)
        return JSONResponse({"name": name, "ready": True})

    infer_answers = {200: {"model": schemas.InferAnswer, "content": {"application/octet-stream": {}}}, **wrong}

    @router.post("/v2/models/{name}/infer", responses=infer_answers, openapi_extra=schemas.INFER_BODY)
    @router.post(
        "/v2/models/{name}/versions/{version}/infer", responses=infer_answers, openapi_extra=schemas.INFER_BODY
    )
    async def infer(name: str, request: Request, version: str = VERSION) -> Response:
        """Score tensors: features of a bank's images, or pictures and point clouds of a method's.

        With `Inference-Header-Content-Length`, tensors' bytes follow the JSON, as the binary tensor data extension has
        it.
        """
        _check_version(version)
        async with backend.admitted(name, announced(request, backend.settings.max_body)) as admission:
            card = await backend.in_time(backend.card(name), request.state.begin)
            length = request.headers.get(HEADER)
            body = await read_body(request, backend, _head_of(length))
            admission.holds(len(body))
            begin = time.perf_counter()
            backend.metrics.section("reading", begin - request.state.begin)
            arguments = (card, body, length)
            asked, work = _asked(*arguments) if length else await _beside(backend, len(body), _asked, *arguments)
            del body
            admission.holds(sum(values.nbytes for values in asked.inputs.values()))
            backend.metrics.section("decoding", time.perf_counter() - begin)
            answer: Answer = await backend.while_there(request, backend.score(name, work))
        begin = time.perf_counter()
        elements = sum(values.size for values in answer.outputs.values())
        response = await _beside(backend, elements, _encoded, name, asked, answer)
        backend.metrics.section("encoding", time.perf_counter() - begin)
        return response

    return router


def _head_of(length: str | None) -> int:
    """Return the length of the JSON, if the header says one; whether it fits the body is looked at later."""
    return int(length) if length and length.isascii() and length.isdigit() and len(length) < 20 else 0


async def _beside(backend: Backend, size: int, function: Any, *arguments: Any) -> Any:
    """Call a function, beside the event loop if it takes long."""
    return await backend.in_thread(function, *arguments) if size > _LONG else function(*arguments)


def _asked(card: Card, body: bytes | memoryview, length: str | None) -> tuple[InferRequest, Work]:
    """Read a request, and say what is to be computed for it.

    Raises:
        Problem: It is wrong.
    """
    try:
        request = parse_request(body, length)
        check_inputs(card, request.inputs)
        names = [one.name for one in request.outputs]
        check_wanted(card, names)
        if not card.takes_pictures:
            return request, bank_work(card, request.inputs, request.parameters, names)
        from mmad_bank.serving.method_models import method_work

        return request, method_work(card, request.inputs, request.parameters)
    except InputError as error:
        raise Problem(400, str(error)) from error


def _encoded(name: str, request: InferRequest, answer: Answer) -> Response:
    facts: dict[str, Any] = {"model_name": name, "model_version": VERSION, "parameters": dict(answer.parameters)}
    facts |= {} if request.id is None else {"id": request.id}
    missing = [one.name for one in request.outputs if one.name not in answer.outputs]
    if missing:
        raise Problem(400, f"outputs: {missing[0]}: expected a calibrated model and its rule and size, found others")
    body, length = build_answer(facts, answer.outputs, request)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={HEADER: str(length)})


def _check_version(version: str) -> None:
    if version != VERSION:
        raise Problem(404, f"version: expected {VERSION}, the one that models have, found {version[:40]!r}")


def repository_routes(backend: Backend) -> APIRouter:
    """Return the routes of the model repository extension."""
    router = APIRouter(tags=["repository"])
    body = {"requestBody": {"required": False, "content": {"application/json": {"schema": {"type": "object"}}}}}

    @router.post(
        "/v2/repository/index", openapi_extra=body,
        responses={200: {"model": list[schemas.ModelState]}, **schemas.errors(400, 413, 415, 503)},
    )  # fmt: skip
    async def index(request: Request) -> Response:
        """List the models. With `{"ready": true}`, those that can be used."""
        given = await _options(request, backend)
        models = await backend.in_thread(backend.repository.index)
        return JSONResponse([one for one in models if given.get("ready") is not True or one["state"] == "READY"])

    @router.post(
        "/v2/repository/models/{name}/load", openapi_extra=body,
        responses={200: {"model": dict[str, Any]}, **schemas.errors(400, 404, 413, 415, 500, 503)},
    )  # fmt: skip
    async def load(name: str, request: Request) -> Response:
        """Load a model now, also one that was unloaded."""
        given = await _options(request, backend)
        if given.get("parameters"):
            raise Problem(400, "parameters: expected none, a model is what lies in the folder")
        await backend.in_time(backend.in_thread(backend.repository.load, name), request.state.begin)
        return JSONResponse({})

    @router.post(
        "/v2/repository/models/{name}/unload", openapi_extra=body,
        responses={200: {"model": dict[str, Any]}, **schemas.errors(400, 404, 413, 415, 503)},
    )  # fmt: skip
    async def unload(name: str, request: Request) -> Response:
        """Let a model go, and refuse requests for it until it is loaded again."""
        await _options(request, backend)
        await backend.in_thread(backend.repository.unload, name)
        return JSONResponse({})

    return router


async def _options(request: Request, backend: Backend) -> Mapping[str, Any]:
    """Return the JSON object of a body, which may be empty.

    Raises:
        Problem: It is something else.
    """
    body = bytes(await read_body(request, backend))
    if not body.strip():
        return {}
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"body: expected JSON, found something else ({str(error)[:80]})") from error
    if not isinstance(content, dict):
        raise Problem(400, f"body: expected a JSON object, found {type(content).__name__}")
    return content
