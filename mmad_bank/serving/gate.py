"""What stands before all doors: keys, sizes, names of requests, counters, the log, and one form of errors."""

from __future__ import annotations

import hmac
import json
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from mmad_bank.serving.backend import Backend
from mmad_bank.serving.problems import Problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready")
"""Paths that need no key."""
_SAFE = {
    b"x-content-type-options": b"nosniff", b"referrer-policy": b"no-referrer", b"x-frame-options": b"DENY",
    b"cache-control": b"no-store",
}  # fmt: skip


class Gate:
    """The outermost part of the application.

    Args:
        app: What is inside.
        backend: The service.
    """

    def __init__(self, app: App, backend: Backend) -> None:
        self._app = app
        self._backend = backend
        self._keys = [key.encode() for key in backend.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Request(self._app, self._backend, self._keys, scope, receive, send).serve()


class _Request:
    """One request on its way."""

    def __init__(
        self, app: App, backend: Backend, keys: list[bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._app, self._backend, self._keys = app, backend, keys
        self._scope, self._receive, self._send = scope, receive, send
        self._headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self._begin = time.perf_counter()
        self._status = 0
        self._read = 0
        given = self._headers.get(b"x-request-id", b"").decode("latin-1")
        self._id = given if re.fullmatch(r"[\w.:-]{1,64}", given, re.ASCII) else uuid.uuid4().hex

    async def serve(self) -> None:
        self._scope.setdefault("state", {})["begin"] = self._begin
        failed = None
        try:
            self._check()
            await self._app(self._scope, self._receive_counted, self._send_marked)
        except Problem as problem:
            failed = str(problem)
            await self._refuse(problem)
        except ClientDisconnect:
            failed = "the client went away"
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
            self._backend.log.say("error", level="error", id=self._id, trace=traceback.format_exc())
            await self._refuse(Problem(500, "internal error; the server's log has more"))
        finally:
            self._note(failed)

    def _check(self) -> None:
        """Refuse who has no key, what comes from another site's page, and a body that is announced too large."""
        path, settings = self._scope["path"], self._backend.settings
        if self._keys and path not in OPEN and not self._has_key():
            raise Problem(
                401, "key: expected a valid one as X-API-Key or Authorization: Bearer", {"WWW-Authenticate": "Bearer"}
            )
        if self._scope["method"] != "GET" and self._headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            raise Problem(403, "origin: expected a request of the service's own page, or of no page")
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > settings.max_body:
            raise self._too_large()

    def _has_key(self) -> bool:
        """Compare with each key, in a time that does not tell how much of it was right."""
        given = self._headers.get(b"x-api-key")
        if given is None:
            scheme, _, given = self._headers.get(b"authorization", b"").partition(b" ")
            given = given.strip() if scheme.lower() == b"bearer" else b""
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0

    def _too_large(self) -> Problem:
        self._backend.metrics.rejected("body")
        return Problem(413, f"body: expected up to {self._backend.settings.max_body:,} bytes", {"Connection": "close"})

    async def _receive_counted(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._read += len(message.get("body", b""))
        if self._read > self._backend.settings.max_body:
            raise self._too_large()
        return message

    async def _send_marked(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            own = {**_SAFE, b"x-request-id": self._id.encode()}
            there = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in own.items() if pair[0] not in there)]
        await self._send(message)

    async def _refuse(self, problem: Problem) -> None:
        """Answer with an error, unless an answer is on its way already."""
        if self._status:
            return
        body = json.dumps({"error": str(problem)}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
        pairs = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send_marked({"type": "http.response.start", "status": problem.status, "headers": pairs})
        await self._send({"type": "http.response.body", "body": body})

    def _note(self, failed: str | None) -> None:
        route = getattr(self._scope.get("route"), "path", "other")
        seconds = time.perf_counter() - self._begin
        status = self._status or 499  # the client went away
        self._backend.metrics.request(route, status, seconds)
        quiet = route in ("/v2/health/live", "/v2/health/ready", "/metrics") and status == 200
        if not quiet:
            client = self._scope.get("client")
            self._backend.log.say(
                "request", level="info" if status < 500 else "error", id=self._id, method=self._scope["method"],
                path=self._scope["path"], status=status, seconds=round(seconds, 6), bytes=self._read,
                model=self._scope.get("path_params", {}).get("name"), client=client[0] if client else None,
                error=failed or self._scope["state"].get("error"),
            )  # fmt: skip
