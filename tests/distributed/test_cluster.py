"""Which Ray the work is done on."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from mmad_bank.distributed.cluster import check_answers, connect
from mmad_bank.errors import InputError


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
        taken.listen()
        check_answers(f"127.0.0.1:{taken.getsockname()[1]}")


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
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(InputError) as found, connect(address):
            pass
    assert str(found.value) == (
        f"address: expected a Ray cluster that can be joined, found {address} (token is missing); if it asks for a"
        " token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here as well"
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
