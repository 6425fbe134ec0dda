"""The Ray that work is done on: a cluster, the one that this process has joined already, or one of its own."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.machine import PROCESS_BYTES, cores, machine_memory
from mmad_bank.errors import InputError, MmadBankError

_PURPOSE = "work on several processes"
_MANY = 10_000
_NAMES = ("auto", "local")
_PATIENCE = 10.0  # seconds
_LAST_PORT = 65535
_HOST_AND_PORT = r"(?:ray://)?\[?([^\[\]/]+)\]?:(\d{1,5})"
# The preface of HTTP/2 and a frame of no settings (RFC 9113, sections 3.4 and 6.5): length, type, flags, stream.
_SETTINGS = b"\x04"
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0" + b"\0\0\0\0"


def import_ray() -> Any:
    """Return the module ``ray``, or say how to install it."""
    return import_extra("ray", "ray", _PURPOSE, "ray")


def check_answers(address: str) -> None:
    """Refuse a host and port where nobody listens, or who does not speak as Ray does: Ray itself asks for minutes.

    Other addresses pass.

    Raises:
        ConnectionError: There is no Ray.

    Example:
        >>> check_answers("auto")
    """
    found = re.fullmatch(_HOST_AND_PORT, address)
    if found is None:
        return
    if not 1 <= int(found[2]) <= _LAST_PORT:  # the system would take the rest of a division by 65536
        raise ConnectionError(f"expected a port from 1 to {_LAST_PORT}")
    try:
        with socket.create_connection((found[1], int(found[2])), _PATIENCE) as connection:
            connection.settimeout(_PATIENCE)
            answer = _first_answer(connection)
    except OSError as error:
        raise ConnectionError(str(error)) from error
    if answer is not None and answer[3:4] != _SETTINGS:
        raise ConnectionError("who listens there is not Ray")


def _first_answer(connection: socket.socket) -> bytes | None:
    """Greet as a client of gRPC, which Ray's processes talk by, and return the first bytes of what comes back.

    None where Ray encrypts, and a greeting would have to be as well.
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return None
    connection.sendall(_GREETING)
    try:
        return connection.recv(9)
    except TimeoutError:
        return b""


@contextmanager
def connect(address: str | None = None, workers: int | None = None) -> Iterator[Any]:
    """Join a Ray cluster for a while, and yield the module ``ray``.

    What was started or joined here is left at the end; a Ray that the process has joined before stays as it is.

    Args:
        address: Address of a cluster, such as ``"auto"`` or ``"ray://HOST:10001"``. Default: the Ray that this process
            has joined, or one that is started on this machine for as long as it is needed.
        workers: Number of processes that will work at the same time, for which a Ray of its own has room.

    Raises:
        InputError: No cluster answers at the address, or the process works on another one.
        MissingExtraError: Ray is not installed.
    """
    if workers is not None:
        check_index(workers, "workers", 1, _MANY, "as many as a cluster may have")
    ray = import_ray()
    if ray.is_initialized():
        if address is not None and address not in ("auto", ray.get_runtime_context().gcs_address):
            raise InputError(
                f"address: expected the Ray that this process has joined,"
                f" {ray.get_runtime_context().gcs_address}, found {address}"
            )
        yield ray
        return
    if address is None:
        _check_room(workers)
    else:
        _check_address(address)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "ignore_reinit_error": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _quiet_core():
            if address is None:
                ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
        if callable(handler):
            _put_back(handler)
    except SystemExit:  # of Ray's own handler
        if not callable(handler):
            raise
        _put_back(handler)
        signal.raise_signal(signal.SIGTERM)
        raise
    except (ConnectionError, ValueError, RuntimeError, ImportError, ray.exceptions.RayError) as error:
        reason = _reason(error)
        advice = "; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here as well" if "token" in reason.lower() else ""
        raise InputError(
            f"address: expected a Ray cluster that can be joined, found {address} ({reason}){advice}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
        _put_back(handler)


def _put_back(handler: Any) -> None:
    """Let SIGTERM do again what it did before Ray was joined, which has it end the program with exit code 15."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _check_address(address: str) -> None:
    other = "://" in address and not address.startswith("http")  # Ray takes modules of other names
    if address not in _NAMES and not other and re.fullmatch(_HOST_AND_PORT, address) is None:
        raise InputError(f"address: expected auto, HOST:PORT or ray://HOST:PORT, found {address!r}")
    try:
        check_answers(address)
    except ConnectionError as error:
        raise InputError(f"address: expected a Ray cluster, found none at {address} ({error})") from error


def _check_room(workers: int | None) -> None:
    """Refuse more processes than this machine's memory has room for: Ray would start them all."""
    room = max(cores(), machine_memory() // PROCESS_BYTES)
    if workers is not None and workers > room:
        raise InputError(
            f"workers: expected at most {room} on this machine, whose memory has room for so many processes, found"
            f" {workers}"
        )


def _reason(error: BaseException) -> str:
    """Return an error's words, or those of Ray's own error behind it: of a missing token it is told only there."""
    behind: BaseException | None = error
    while behind is not None and not type(behind).__module__.startswith("ray."):
        behind = behind.__cause__ or behind.__context__
    return _one_line(behind or error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Keep the lines of Ray's native core, which are for its developers, off standard error unless the user asks.

    The core reads the variable when it starts, and says that it did: nothing is written to standard error meanwhile.
    """
    name = "RAY_BACKEND_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "fatal"
    try:
        with _unheard():
            yield
    finally:
        os.environ.pop(name, None)


@contextmanager
def _unheard() -> Iterator[None]:
    """Lead the process's standard error nowhere, for native code too."""
    try:
        kept = os.dup(2)
    except OSError:  # it has none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def machines(ray: Any) -> tuple[int, int]:
    """Return the numbers of a cluster's machines that work, and of the processes that these have room for."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return max(1, len(alive)), max(1, int(sum(node["Resources"]["CPU"] for node in alive)))


def take_share(processes: int) -> None:
    """Let PyTorch and the core work with the share of this machine's cores that one of so many processes has."""
    import torch

    torch.set_num_threads(max(1, cores() // processes))


@contextmanager
def working_on(ray: Any) -> Iterator[None]:
    """Let what goes wrong in another process be as if it went wrong here.

    Raises:
        MmadBankError: What a task has raised, if it is one of the package's own errors.
        InputError: A process died as often as it was started again, or the cluster is gone.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MmadBankError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise InputError(
            f"workers: expected processes that stay alive, found one that died ({_one_line(error)})"
        ) from error
