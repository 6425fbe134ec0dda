"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from mmad_bank import __version__
from mmad_bank._internal.terminal import printable
from mmad_bank.serving import schemas
from mmad_bank.serving.backend import Backend
from mmad_bank.serving.gate import Gate
from mmad_bank.serving.pages import policy, routes_page, trial_page
from mmad_bank.serving.pictures import picture_routes
from mmad_bank.serving.problems import Problem
from mmad_bank.serving.protocol import health_routes, model_routes, repository_routes
from mmad_bank.serving.settings import Settings


def create_app(settings: Settings, backend: Backend | None = None) -> FastAPI:
    """Return the service as an ASGI application, for any server that runs those.

    Args:
        settings: Its settings.
        backend: What has the models and computes; default: one that loads them as they are asked for, and lets them go
            under a memory budget. Where something else does that, it overrides ``card`` and ``submit``.

    Returns:
        The application; its ``state.backend`` is the service behind it.

    Raises:
        InputError: There are no models where the settings say.

    Example:
        >>> import tempfile, torch
        >>> from mmad_bank import MemoryBank
        >>> folder = tempfile.mkdtemp()
        >>> MemoryBank(torch.rand(5, 3)).save(f"{folder}/tile.bank")
        >>> app = create_app(Settings(folder))
        >>> app.state.backend.repository.index()
        [{'name': 'tile', 'version': '1', 'state': 'READY', 'reason': '', 'kind': 'bank'}]
    """
    backend = Backend(settings) if backend is None else backend

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        backend.close()

    app = FastAPI(
        title="mmad-bank", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Memory-bank anomaly detection behind the Open Inference Protocol v2, and a door for pictures.",
    )  # fmt: skip
    app.state.backend = backend
    app.add_middleware(Gate, backend=backend)
    app.add_exception_handler(Problem, _say_problem)
    app.add_exception_handler(HTTPException, _say_http)
    app.add_exception_handler(RequestValidationError, _say_invalid)
    for routes in (health_routes, model_routes, repository_routes, picture_routes):
        app.include_router(routes(backend))
    _add_metrics(app, backend)
    _add_pages(app)
    _describe_keys(app, settings)
    return app


def _add_metrics(app: FastAPI, backend: Backend) -> None:
    @app.get(
        "/metrics", tags=["health"], response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **schemas.errors()},
    )  # fmt: skip
    async def metrics() -> Response:
        """Tell Prometheus what was done."""
        text, kind = backend.metrics.text()
        return Response(text, media_type=kind)


def _add_pages(app: FastAPI) -> None:
    headers = {"Content-Security-Policy": policy()}
    trial = trial_page()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(trial, headers=headers)

    @app.get("/docs", include_in_schema=False)
    async def routes() -> Response:
        return HTMLResponse(routes_page(app.openapi()), headers=headers)


def _describe_keys(app: FastAPI, settings: Settings) -> None:
    """Let the OpenAPI description say that a key is needed, if one is."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        made = "securitySchemes" not in (app.openapi_schema or {}).get("components", {})
        description = describe()
        if made and settings.api_keys:
            description["components"]["securitySchemes"] = {
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            }
            description["security"] = [{"header": []}, {"bearer": []}]
        return description

    app.openapi = described  # type: ignore[method-assign]


def _error(request: Request, status: int, line: str, headers: Any = None) -> Response:
    request.state.error = line  # for the log
    return JSONResponse({"error": printable(line)}, status, headers)  # a client's words are in it


async def _say_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return _error(request, problem.status, str(problem), problem.headers)


async def _say_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(request, error.status_code, str(error.detail), error.headers)


async def _say_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return _error(request, 422, f"{where}: {first['msg']}, found {first.get('input')!r:.60}")
