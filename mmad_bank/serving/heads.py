"""Heads of requests: read within a time, and up to a size. The server sets no limit to either."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from typing import Any

MOST = 65536
"""Bytes of a head beyond those that came with its beginning."""
SECONDS = 30.0
"""Time for a head, from the connection on, or from its first byte on a connection that was used before."""


class Blocks:
    """What has come of a body and was not read yet. It stands for uvicorn's bytearray, which copies a block twice.

    Example:
        >>> blocks = Blocks()
        >>> blocks += b"one"
        >>> blocks += b"two"
        >>> len(blocks), bytes(blocks)
        (6, b'onetwo')
    """

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._size = 0  # counted, as it is asked for at every block, and a chunked body may have one for each byte

    def __iadd__(self, block: bytes) -> Blocks:
        self._blocks.append(block)
        self._size += len(block)
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._blocks)  # of one block, that block itself


@cache
def protocol() -> Any:
    """Return what uvicorn is to read requests with: its reader by httptools with the limits, or its own choice.

    Without httptools, uvicorn takes h11, which limits the size by itself.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "auto"

    class Limited(HttpToolsProtocol):
        """Reader that gives a connection up whose head is too long or comes too slowly."""

        _timer: asyncio.TimerHandle | None = None
        _open = False  # a head has begun and not ended
        _size = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            was_open = self._open
            super().data_received(data)
            self._size = self._size + len(data) if was_open and self._open else 0
            if self._size > MOST:
                self._give_up("431 Request Header Fields Too Large", f"head: expected up to {MOST:,} bytes, found more")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._open = True
            if self._timer is None:
                self._wait()

        def on_headers_complete(self) -> None:
            self._open = False
            self._wait_no_more()
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if isinstance(self.cycle.body, bytearray) and not self.cycle.body:
                self.cycle.body = Blocks()  # type: ignore[assignment]  # has all that is done with it
            super().on_body(body)

        def _wait(self) -> None:
            self._timer = self.loop.call_later(
                SECONDS, self._give_up, "408 Request Timeout", f"head: expected it within {SECONDS:g} seconds"
            )

        def _wait_no_more(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self, status: str, line: str) -> None:
            self._wait_no_more()
            if self.transport.is_closing():
                return
            # Who has sent nothing is told nothing; nobody is told anything amid another answer.
            if self._open and (self.cycle is None or self.cycle.response_complete):
                body = json.dumps({"error": line})
                head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                self.transport.write(f"{head}connection: close\r\n\r\n{body}".encode())
            self.transport.close()

    return Limited
