"""Batches, queues, sizes, times, keys, logs and the end of a service."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import re
import socket
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from running_service import Service, calibrated_bank, images, output, running

from mmad_bank.errors import InputError
from mmad_bank.serving import Settings, heads
from mmad_bank.serving.models import ServedBank
from mmad_bank.serving.settings import read_keys

BANK = calibrated_bank()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    models.mkdir()
    BANK.save(models / "tile.bank")
    BANK.save(models / "other.bank")
    return models


class Gate:
    """Holds every computation until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.sizes: list[int] = []
        run = ServedBank.run

        def held(model: ServedBank, works: Any) -> Any:
            self.sizes.append(len(works))
            assert self.opened.wait(30)
            return run(model, works)

        monkeypatch.setattr(ServedBank, "run", held)


def until(condition: Any) -> None:
    """Wait for something that another thread does."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_requests_that_come_together_are_computed_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with running(folder, max_batch=8) as service, ThreadPoolExecutor(20) as pool:
        first = pool.submit(service.infer, "tile", images(1))
        until(lambda: gate.sizes)
        rest = [pool.submit(service.infer, "tile", images(1 + i % 2, seed=i)) for i in range(12)]
        until(lambda: service.backend.batcher.depth == 12)
        gate.opened.set()
        output(first.result(), "image_scores")
        for i, one in enumerate(rest):
            scores = BANK.score(images(1 + i % 2, seed=i))
            assert np.array_equal(output(one.result(), "image_scores"), scores.image.numpy())
            assert np.array_equal(output(one.result(), "nearest"), scores.nearest.numpy())
        assert service.metric("mmad_bank_batch_images_sum") == 1 + 18
        assert service.metric("mmad_bank_batch_images_count") == len(gate.sizes) <= 5


def test_a_bad_request_spoils_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with running(folder) as service, ThreadPoolExecutor(20) as pool:
        first = pool.submit(service.infer, "tile", images(1))
        until(lambda: gate.sizes)
        bad = pool.submit(service.infer, "tile", images(1) * np.nan)
        good = [pool.submit(service.infer, "tile", images(1, seed=i)) for i in range(3)]
        until(lambda: service.backend.batcher.depth == 4)
        gate.opened.set()
        assert (bad.result().status, first.result().status) == (400, 200)
        for i, one in enumerate(good):
            assert np.array_equal(output(one.result(), "image_scores"), BANK.score(images(1, seed=i)).image.numpy())
        assert gate.sizes[1] == 4


def test_overload_is_answered_and_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with running(folder, max_queue=3) as service, ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(service.infer, "tile", images(1)) for _ in range(3)]
        until(lambda: service.backend._admitted == 3)
        refused = service.infer("other", images(1))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.json["error"].startswith("overloaded: 3 requests are being served")
        assert service.get("/v2/health/ready").status == 200  # health has no queue
        gate.opened.set()
        assert [one.result().status for one in taken] == [200] * 3
        assert service.infer("other", images(1)).status == 200
        assert service.metric("mmad_bank_rejected_total") == 1


def test_who_has_gone_away_is_not_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with running(folder) as service, ThreadPoolExecutor(20) as pool:
        first = pool.submit(service.infer, "tile", images(1))
        until(lambda: gate.sizes)
        rows = images(1, seed=1)
        tensor = {"name": "patches", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        head = f"POST /v2/models/tile/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        leaving = [socket.create_connection(service.host.split(":")) for _ in range(3)]
        for one in leaving:
            one.sendall(head + body)
        stays = pool.submit(service.infer, "tile", images(1, seed=2))
        until(lambda: service.backend.batcher.depth == 4)
        for one in leaving:
            one.close()
        until(lambda: service.metric("mmad_bank_rejected_total") == 3)
        until(lambda: service.backend._admitted == 2)
        gate.opened.set()
        assert first.result().status == 200
        assert np.array_equal(output(stays.result(), "image_scores"), BANK.score(images(1, seed=2)).image.numpy())
        assert gate.sizes == [1, 1]


def test_what_small_bodies_unpack_to_counts_while_it_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.zeros((1, 16 * 400, 4), np.float32)  # 102,400 bytes, packed a hundred times smaller
    head = {
        "name": "patches",
        "datatype": "FP32",
        "shape": list(rows.shape),
        "parameters": {"binary_data_size": rows.nbytes},
    }
    text = json.dumps({"inputs": [head]}).encode()
    packed = gzip.compress(text + rows.tobytes())

    def ask(service: Service) -> int:
        headers = {"Content_Encoding": "gzip", "Inference_Header_Content_Length": str(len(text))}
        return service.ask("POST", "/v2/models/tile/infer", packed, **headers).status

    gate = Gate(monkeypatch)
    with running(folder, max_body=110_000) as service, ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, service) for _ in range(20)]
        until(lambda: sum(one.done() for one in asked) == 12)
        assert service.backend._bytes == 8 * rows.nbytes
        gate.opened.set()
        assert sorted(one.result() for one in asked) == [200] * 8 + [503] * 12
        assert service.metric("mmad_bank_rejected_total") == 12
        until(lambda: service.backend._bytes == 0)
        assert ask(service) == 200


def test_models_do_not_wait_for_each_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with running(folder) as service, ThreadPoolExecutor(2) as pool:
        both = [pool.submit(service.infer, name, images(1)) for name in ("tile", "other")]
        until(lambda: len(gate.sizes) == 2)
        gate.opened.set()
        assert [one.result().status for one in both] == [200, 200]


def test_a_request_is_given_up_in_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with running(folder, timeout=0.3) as service:
        found = service.infer("tile", images(1))
        assert (found.status, found.json["error"]) == (503, "timeout: the request was given up after 0.3 seconds")
        gate.opened.set()
        until(lambda: service.infer("tile", images(1)).status == 200)


def test_bodies_are_limited_whether_they_say_their_length_or_not(folder: Path) -> None:
    with running(folder, max_body=1000) as service:
        assert service.infer("tile", images(20)).status == 413
        chunked = service.ask("POST", "/v2/models/tile/infer", iter([b"x" * 600] * 3))
        assert (chunked.status, chunked.json["error"]) == (413, "body: expected up to 1,000 bytes")
        assert service.metric("mmad_bank_rejected_total") == 2


def said(service: Service, sent: bytes) -> bytes:
    """Send bytes, and return what comes until the service closes the connection."""
    host, _, port = service.host.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        found = b""
        while block := connection.recv(65536):
            found += block
    return found


def test_a_length_beside_chunks_does_not_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h11")
    monkeypatch.setattr(heads, "protocol", lambda: "h11")  # httptools refuses such a head
    head = b"POST /v2/models/tile/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 70000\r\n"
    body = b"x" * 90_000
    with running(folder) as service:
        found = said(service, head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert b" 400 " in found.splitlines()[0]
    assert b"body: expected JSON" in found


def test_bodies_take_memory_that_no_other_body_has(folder: Path) -> None:
    from mmad_bank.serving import bodies

    bodies._rooms.clear()
    first, second = bodies._room(100_000), bodies._room(100_000)
    places = {first.ctypes.data, second.ctypes.data}
    assert len(places) == 2
    still = first.data[10:20]  # a part of it is enough to keep it
    del first, second
    third, fourth = bodies._room(90_000), bodies._room(90_000)
    assert third.ctypes.data in places
    assert fourth.ctypes.data not in places
    assert len(still) == 10
    for _ in range(200):
        bodies._room(10_000_000).fill(1)  # one after the other: the same memory
    assert len(bodies._rooms) <= 4
    kept = [bodies._room(10_000_000) for _ in range(30)]
    assert sum(one.nbytes for one in bodies._rooms) <= bodies._KEPT_BYTES
    assert len({one.ctypes.data for one in kept}) == 30
    bodies._rooms.clear()


def test_memory_of_a_body_larger_than_all_that_is_kept_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmad_bank.serving import bodies

    monkeypatch.setattr(bodies, "_rooms", deque())
    monkeypatch.setattr(bodies, "_KEPT_BYTES", 1000)
    small, large = bodies._room(900), bodies._room(1001)
    assert (len(small), len(large)) == (900, 1001)
    assert sum(one.nbytes for one in bodies._rooms) <= 1000


def test_memory_in_use_is_told_by_a_python_that_counts_fewer_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 borrows references, so that the count of what has one user more is that of 3.13 without it."""
    counted = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda one: counted(one) - 3)  # this function's own two, and one
    spec = importlib.util.find_spec("mmad_bank.serving.bodies")
    assert spec is not None
    assert spec.loader is not None
    bodies = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bodies)
    first, second = bodies._room(1000), bodies._room(1000)
    assert first.ctypes.data != second.ctypes.data
    place = first.ctypes.data
    del first
    assert bodies._room(1000).ctypes.data == place


def test_the_size_of_many_blocks_is_not_counted_again_at_each() -> None:
    """A chunked body may have a block for each byte, and uvicorn asks for the size at every one."""
    measured = 0

    class Block(bytes):
        def __len__(self) -> int:
            nonlocal measured
            measured += 1
            return super().__len__()

    blocks = heads.Blocks()
    for number in range(1, 101):
        blocks += Block(b"xy")
        assert len(blocks) == 2 * number
    assert bytes(blocks) == b"xy" * 100
    assert measured <= 100


@pytest.mark.parametrize("before", [b"", b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_heads_are_limited(folder: Path, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    pytest.importorskip("httptools")
    monkeypatch.setattr(heads, "MOST", 1000)
    with running(folder) as service:
        host, _, port = service.host.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(before + b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: ")
            time.sleep(0.2)
            for _ in range(3):
                connection.sendall(b"a" * 400)  # not more than is read until the end: the answer would be lost
                time.sleep(0.1)
            found = connection.recv(65536)
        assert b"HTTP/1.1 431 " in found
        assert found.endswith(b'{"error": "head: expected up to 1,000 bytes, found more"}')
        assert service.infer("tile", images(20)).status == 200  # a body counts for no head


def test_heads_have_their_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("httptools")
    monkeypatch.setattr(heads, "SECONDS", 0.3)
    whole = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    late = b'{"error": "head: expected it within 0.3 seconds"}'
    with running(folder) as service:
        assert said(service, b"") == b""
        assert said(service, b"GET /v2 HTTP/1.1\r\n").endswith(late)
        found = said(service, whole + b"GET")
        assert (found.count(b'{"live":true}'), found.endswith(late)) == (1, True)


def test_keys_are_asked_for(folder: Path) -> None:
    with running(folder, api_keys=("right-key", "other-key")) as service:
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/docs"):
            assert service.get(path).status == 200
        for path in ("/v2", "/v2/models/tile", "/metrics", "/predict/tile", "/nothing"):
            assert service.get(path).status == 401
            assert service.get(path, X_API_Key="wrong-key").status == 401
        assert service.get("/v2", X_API_Key="other-key").status == 200
        assert service.get("/v2", Authorization="Bearer right-key").status == 200
        assert service.get("/v2", Authorization="Basic right-key").status == 401
        assert "X-API-Key" in service.get("/openapi.json").body.decode()
        assert service.get("/v2").headers["www-authenticate"] == "Bearer"


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("# of the line\nfirst-key\n\nsecond-key\n")
    (tmp_path / "none").write_text("\n")
    monkeypatch.delenv("MMAD_BANK_API_KEY", raising=False)
    assert read_keys(None) == ()
    assert read_keys(tmp_path / "keys") == ("first-key", "second-key")
    monkeypatch.setenv("MMAD_BANK_API_KEY", "third-key")
    assert read_keys(None) == ("third-key",)
    for name, words in (("none", "expected a key on a line"), ("missing", "cannot be read")):
        with pytest.raises(InputError, match=words):
            read_keys(tmp_path / name)
    with pytest.raises(InputError, match="api_key: expected keys of at least 8"):
        Settings("x", api_keys=("short",))


def test_pages_of_other_sites_are_refused(folder: Path) -> None:
    with running(folder) as service:
        assert service.ask("POST", "/v2/repository/index", Sec_Fetch_Site="cross-site").status == 403
        assert service.ask("POST", "/v2/repository/index", Sec_Fetch_Site="same-origin").status == 200


def test_logs_are_lines_of_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(folder, log_format="json") as service:
        service.ask("GET", "/v2/models/tile", X_Request_Id="my-id")
        service.infer("tile", images(1) * np.nan)
        service.get("/v2/%22quoted%0Aline", X_Request_Id="no such id")
        service.get("/v2/health/live")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(one["event"], one.get("status")) for one in lines] == [
        ("model loaded", None), ("request", 200), ("request", 400), ("request", 404)
    ]  # fmt: skip
    assert (lines[1]["id"], lines[1]["model"]) == ("my-id", "tile")
    assert "patch 0 holds" in lines[2]["error"]
    assert re.fullmatch("[0-9a-f]{32}", lines[3]["id"])


def test_a_name_feigns_no_facts_in_the_log(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(folder, log_format="text") as service:
        service.get("/v2/models/x%20status=200%22%0Ay")
        service.get("/v2/models/tile")
    first, *_, last = capsys.readouterr().err.splitlines()
    assert r'path="/v2/models/x status=200\"\\ny" status=404 ' in first
    assert "path=/v2/models/tile status=200 " in last


def test_a_log_that_nobody_reads_harms_no_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    with running(folder, log_format="text") as service:
        monkeypatch.setattr(service.backend.log, "_stream", Broken())
        assert [service.infer("tile", images(1)).status for _ in range(2)] == [200, 200]
        assert service.get("/v2/models/none").status == 404
        assert {slot.loaded.users for slot in service.backend.repository._slots.values()} == {0}


def test_metrics_say_what_was_done(folder: Path) -> None:
    with running(folder) as service:
        rows = images(6)
        service.infer("tile", rows)
        service.infer("tile", rows, reweight="best")
        text = service.get("/metrics").body.decode()
    bad = int(BANK.judge(BANK.score(rows)).bad.sum())
    for line in (
        f'mmad_bank_verdicts_total{{model="tile",verdict="bad"}} {bad}.0',
        'mmad_bank_requests_total{route="/v2/models/{name}/infer",status="200"} 1.0',
        'mmad_bank_requests_total{route="/v2/models/{name}/infer",status="400"} 1.0',
        'mmad_bank_section_seconds_count{section="computing"} 1.0',
        'mmad_bank_section_seconds_count{section="waiting"} 1.0',
        'mmad_bank_model_events_total{event="loaded"} 1.0',
        "mmad_bank_models_resident 1.0",
    ):
        assert line in text.splitlines(), line
    assert re.search(r"^mmad_bank_models_resident_bytes [1-9]", text, re.MULTILINE)


def test_what_is_in_work_is_finished_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    results: list[Any] = []

    def ask(service: Service) -> None:
        results.append(service.infer("tile", images(1)))

    with running(folder) as service:
        thread = threading.Thread(target=ask, args=(service,))
        thread.start()
        until(lambda: gate.sizes)
        threading.Timer(0.5, gate.opened.set).start()  # while the server is ending
    thread.join()
    assert results[0].status == 200


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_batch", 0, "max_batch: expected at least 1"),
        ("memory", 0, "memory: expected at least 1"),
        ("batch_delay", 11, "batch_delay: expected 0 to 10 seconds"),
        ("timeout", 0, "timeout: expected above 0"),
    ],
)
def test_settings_out_of_range(name: str, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings("x", **{name: value})
