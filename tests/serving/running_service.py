"""A service in a thread of the test's process, and plain requests to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch

from mmad_bank import MemoryBank
from mmad_bank.serving import Settings
from mmad_bank.serving.running import address_of, listen, server_for


class Reply(NamedTuple):
    """What the service has answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Service(NamedTuple):
    """A service that runs."""

    url: str
    backend: Any

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send a request on a connection of its own; dictionaries and lists as JSON."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        sent = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        try:
            connection.request(method, path, sent, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def infer(self, model: str, patches: np.ndarray, **parameters: Any) -> Reply:
        """Score features, sent as JSON."""
        tensor = {"name": "patches", "datatype": "FP32", "shape": list(patches.shape), "data": patches.ravel().tolist()}
        return self.ask("POST", f"/v2/models/{model}/infer", {"inputs": [tensor], "parameters": parameters})

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@contextmanager
def running(models: Path, **settings: Any) -> Iterator[Service]:
    """Serve a folder at a free port until the block ends."""
    server = server_for(Settings(models, **settings))
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield Service(address_of(listening), server.config.app.state.backend)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


def output(reply: Reply, name: str) -> np.ndarray:
    """Return a tensor of an answer in JSON."""
    assert reply.status == 200, reply.body
    found = next(one for one in reply.json["outputs"] if one["name"] == name)
    return np.array(found["data"]).reshape(found["shape"])


def calibrated_bank(seed: int = 0, dim: int = 4) -> MemoryBank:
    """Return a small calibrated bank of images of 16 patches."""
    generator = torch.Generator().manual_seed(seed)
    bank = MemoryBank.build(torch.rand(8, 16, dim, generator=generator), ratio=0.5)
    bank.calibrate(torch.rand(99, 16, dim, generator=generator))
    return bank


def images(n: int, seed: int = 1, dim: int = 4) -> np.ndarray:
    """Return features of some images of 16 patches."""
    return np.random.default_rng(seed).uniform(0, 1.5, (n, 16, dim)).astype(np.float32)
