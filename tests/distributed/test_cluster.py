"""Which Ray the work is done on."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from mmad_bank._internal.machine import PROCESS_BYTES
from mmad_bank.distributed.cluster import check_answers, connect
from mmad_bank.errors import InputError

_SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"
"""How a server of HTTP/2, and so of gRPC, begins (RFC 9113, section 6.5)."""


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Yield the address of a listener that answers whatever it is told in the same way, or not at all."""

    def serve() -> None:
        kept = []
        with suppress(OSError):
            while True:
                kept.append(listener.accept()[0])
                kept[-1].sendall(answer)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_the_ray_that_the_process_has_joined_is_taken_and_left_alone(cluster: Any) -> None:
    with connect(workers=2) as ray:
        assert ray.get(ray.remote(lambda: 3).remote()) == 3
    assert cluster.is_initialized()


def test_another_cluster_than_the_joined_one_is_refused(cluster: Any) -> None:
    with pytest.raises(
        InputError, match=r"^address: expected the Ray that this process has joined, .*, found 1\.2\.3\.4:5$"
    ):
        with connect("1.2.3.4:5"):
            pass


@pytest.mark.parametrize("when", ["while it is joined", "later"])
def test_sigterm_does_what_it_did_before(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Ray has it end the program with exit code 15, and says nothing: the command would, too."""
    ray = pytest.importorskip("ray")

    def stop(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def leave(signum: int, frame: Any) -> None:
        raise SystemExit(signum)

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, leave)
        if when == "while it is joined":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt), connect():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://localhost:{}"])
def test_an_address_where_nobody_listens_is_refused_at_once(form: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ConnectionError, match="refused"):
            check_answers(form.format(taken.getsockname()[1]))


def test_a_listener_that_cannot_be_joined_is_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that asks for a token answers, but not those who have none; Ray says why only behind its error."""
    ray = pytest.importorskip("ray")

    def refuse(**_: Any) -> None:
        try:
            raise ray.exceptions.RayError("token is missing")
        except ray.exceptions.RayError as error:
            raise ConnectionError("Failed to connect") from error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with answering(_SETTINGS_FRAME) as address:
        with pytest.raises(InputError) as found, connect(address):
            pass
    assert str(found.value) == (
        f"address: expected a Ray cluster that can be joined, found {address} (token is missing); set"
        " RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here as well"
    )


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_a_listener_that_is_no_ray_is_refused_before_ray_asks_for_minutes(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("mmad_bank.distributed.cluster._PATIENCE", 0.2)
    with answering(answer) as address:
        for form in (address, f"ray://{address}"):
            with pytest.raises(InputError) as found, connect(form):
                pass
            assert str(found.value) == (
                f"address: expected a Ray cluster, found none at {form} (who listens there is not Ray)"
            )


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.0.0.1:83617", "ray://127.0.0.1:99999"])
def test_a_port_that_there_is_not_is_not_that_of_another(address: str) -> None:
    """The system takes the rest of a division by 65536."""
    with pytest.raises(ConnectionError, match="expected a port from 1 to 65535"):
        check_answers(address)


@pytest.mark.parametrize("address", ["", "nonsense", "1.2.3.4", "host:port", "host:6379/x", "http://host:6379"])
def test_an_address_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(InputError) as found, connect(address):
        pass
    assert str(found.value) == f"address: expected auto, HOST:PORT or ray://HOST:PORT, found {address!r}"


def test_a_ray_of_its_own_has_room_for_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("mmad_bank.distributed.cluster.machine_memory", lambda: 5 * PROCESS_BYTES)
    monkeypatch.setattr("mmad_bank.distributed.cluster.cores", lambda: 2)
    with pytest.raises(InputError) as found, connect(workers=6):
        pass
    assert str(found.value) == (
        "workers: expected at most 5 on this machine, whose memory has room for so many processes, found 6"
    )


@pytest.mark.parametrize("workers", [0, -1, 2.5])
def test_workers_are_counted(workers: Any) -> None:
    with pytest.raises(InputError, match=r"^workers: "):
        with connect(workers=workers):
            pass


def test_a_missing_ray_is_said_in_one_line() -> None:
    program = (
        "import sys; sys.modules['ray'] = None\n"
        "from mmad_bank.distributed.cluster import connect\n"
        "from mmad_bank.errors import MissingExtraError\n"
        "try: connect().__enter__()\n"
        "except MissingExtraError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.count("\n") == 1
    assert "mmad-bank[ray]" in said
