"""The service in a process of its own: sockets, signals, and an end that loses no request."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmad_bank._internal.extras import import_extra
from mmad_bank.errors import InputError
from mmad_bank.serving.logs import Log
from mmad_bank.serving.settings import Settings

_PURPOSE = "the service"
GRACE = 30.0
"""Seconds that requests in work are waited for at the end."""


def check_extra() -> None:
    """Make sure that what the service needs is installed.

    Raises:
        MissingExtraError: It is not.
    """
    modules = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
    for package, module in zip(("fastapi", "uvicorn", "prometheus-client", "python-multipart"), modules, strict=True):
        import_extra(package, module, _PURPOSE, "serve")


def run(
    settings: Settings, host: str = "127.0.0.1", port: int = 8000, *, ready: Callable[[str, Any], None] | None = None
) -> None:
    """Serve until a signal ends it (SIGINT or SIGTERM); requests in work are answered first.

    Args:
        settings: Settings of the service.
        host: Address to listen at; the default is this machine alone.
        port: Port to listen at; 0 takes a free one.
        ready: Function that is called with the address, and what :func:`server_for` returns, before requests are taken.

    Raises:
        InputError: There are no models where the settings say, or the address cannot be listened at.
        MissingExtraError: What the service needs is not installed.
    """
    check_extra()
    listening = listen(host, port)
    try:
        server = server_for(settings)
        tell(server.config.app.state.backend.log)
        if ready is not None:
            ready(address_of(listening), server)
        server.run(sockets=[listening])
    finally:
        listening.close()


def tell(log: Log) -> None:
    """Let the service's log take what uvicorn warns of."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log.say("server", level=record.levelname.lower(), message=record.getMessage())

    own = logging.getLogger("uvicorn.error")
    own.handlers, own.propagate = [Handler(logging.WARNING)], False


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InputError: The address is not one of this machine, or somebody listens there already.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port: expected 0 to 65535, found {port}")
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"host: cannot listen at {host} port {port} ({reason})") from error


def address_of(listening: socket.socket) -> str:
    """Return the address of a socket, as a browser takes it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_for(settings: Settings) -> Any:
    """Return uvicorn's server of an application; its ``run`` serves, its ``should_exit`` ends that."""
    import uvicorn

    from mmad_bank.serving.app import create_app
    from mmad_bank.serving.heads import protocol

    app = create_app(settings)
    backend = app.state.backend

    class Server(uvicorn.Server):
        """Server that ends by a signal as by anything else: without raising it again."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: Any) -> None:
            backend.stopping = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app, http=protocol(), log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=int(GRACE), timeout_keep_alive=75, ws="none", lifespan="on",
    )  # fmt: skip
    return Server(config)
