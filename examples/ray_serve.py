"""The HTTP service on a Ray cluster, under Ray Serve.

    python examples/ray_serve.py MODELS                    # on this machine, or the cluster that RAY_ADDRESS names
    curl -s -F image=@new.png http://127.0.0.1:8000/predict/part

Doors and answers are those of ``mmad-bank serve``. Ray Serve does what the embedded service does for one process: it
puts requests together to batches, keeps the models in memory that are asked for, sends a request to a replica that has
its model already, and starts and ends replicas as the load rises and falls.

A request comes to the door, which reads the model's name from the path and gives the request to a replica; there the
same application answers that ``mmad-bank serve`` runs, with Ray Serve's models and batches behind it.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from mmad_bank.serving import Settings, create_app
from mmad_bank.serving.backend import Backend, load_place
from mmad_bank.serving.models import Answer, Card, Served, Work, computed
from mmad_bank.serving.problems import Problem

MODEL = re.compile(r"/(?:v2/models|predict)/([^/]+)")
MODELS_AT_ONCE = 50  # that a replica keeps in memory; the one that was used longest ago goes first
BATCH, DELAY = 32, 0.002  # images, and seconds to wait for them
REPLICAS, REQUESTS = 8, 16  # most replicas, and requests under way in each before another one starts

Got = tuple[str, str, bytes, list[tuple[bytes, bytes]], bytes]
"""Method, path, query, headers and body of a request."""
Said = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body of an answer."""


class OnRayServe(Backend):
    """The service's backend, with models and batches of Ray Serve."""

    def __init__(
        self,
        settings: Settings,
        model: Callable[[str], Awaitable[Served]],
        compute: Callable[[tuple[str, Served, Work]], Awaitable[tuple[Answer | None, Exception | None]]],
    ) -> None:
        super().__init__(settings)
        self._model, self._batched = model, compute

    async def card(self, name: str) -> Card:
        return (await self._model(name)).card

    async def submit(self, name: str, work: Work) -> Answer:
        answer, error = await self._batched((name, await self._model(name), work))
        if answer is None:
            raise error or RuntimeError("no answer")
        return answer


@serve.deployment(
    max_ongoing_requests=4 * REQUESTS,
    autoscaling_config={"min_replicas": 1, "max_replicas": REPLICAS, "target_ongoing_requests": REQUESTS},
    ray_actor_options={"num_cpus": 1},
)
class Models:
    """A replica: the application, the models that it was asked for, and batches of requests."""

    def __init__(self, folder: str) -> None:
        self._settings = Settings(folder, max_batch=BATCH)
        self._backend = OnRayServe(self._settings, self.model, self.compute)
        self._app = create_app(self._settings, self._backend)

    @serve.multiplexed(max_num_models_per_replica=MODELS_AT_ONCE)
    async def model(self, name: str) -> Served:
        """Load a model, once as long as it is in memory."""
        place = self._backend.repository.catalog.find(name)
        if place is None:
            raise Problem(404, f"model: found none called {name[:100]!r}")
        return await asyncio.to_thread(load_place, place, self._settings)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=DELAY)
    async def compute(self, asked: list[tuple[str, Served, Work]]) -> list[tuple[Answer | None, Exception | None]]:
        """Compute a batch: the requests for one model that are alike together."""
        groups: dict[Any, list[int]] = {}
        for number, (name, _, work) in enumerate(asked):
            groups.setdefault((name, work.key), []).append(number)
        answers: list[tuple[Answer | None, Exception | None]] = [(None, None)] * len(asked)
        for numbers in groups.values():
            model, works = asked[numbers[0]][1], [asked[number][2] for number in numbers]
            found = await asyncio.to_thread(computed, model, works)
            for number, one in zip(numbers, found, strict=True):
                answers[number] = (None, one) if isinstance(one, Exception) else (one, None)
        return answers

    async def __call__(self, request: Got) -> Said:
        return await asked_of(self._app, request)


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Door:
    """What takes requests, and finds the replica for each by the name of its model."""

    def __init__(self, models: Any) -> None:
        self._models = models

    async def __call__(self, request: Request) -> Response:
        found = MODEL.match(request.url.path)
        models = self._models.options(multiplexed_model_id=found[1]) if found else self._models
        got = (request.method, request.url.path, request.url.query.encode(), request.headers.raw, await request.body())
        status, headers, body = await models.remote(got)
        answer = Response(body, status)
        answer.raw_headers = headers
        return answer


async def asked_of(app: Any, request: Got) -> Said:
    """Ask an ASGI application within this process."""
    method, path, query, headers, body = request
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query, "root_path": "", "headers": headers,
        "client": None, "server": None,
    }  # fmt: skip
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *rest = sent
    return start["status"], list(start["headers"]), b"".join(one.get("body", b"") for one in rest)


def build(models: str) -> Any:
    """Return the application for ``serve.run``."""
    return Door.bind(Models.bind(str(Path(models).absolute())))


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Serve models over HTTP on a Ray cluster.")
    parser.add_argument("models", help="folder of saved models and bank files, which all machines see")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    serve.run(build(arguments.models), name="mmad-bank")
    print(f"http://{arguments.host}:{arguments.port}", flush=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
