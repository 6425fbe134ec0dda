"""Bodies of requests: read within the time, and unpacked within the limits."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from mmad_bank.serving.problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

    from mmad_bank.serving.backend import Backend

_LARGE = 65536  # bytes; smaller bodies come in one block anyway
_ALIGNED = 16  # bytes; memory begins at a multiple of that
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def announced(request: Request, most: int) -> int:
    """Return the bytes that a request announces; the most that it may have where it does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else most


async def read_body(request: Request, backend: Backend, head: int = 0) -> bytes | memoryview:
    """Read a body, and unpack it if it is compressed.

    Args:
        request: The request.
        backend: The service.
        head: Bytes before those that are to lie in memory as tensors have to: they need not be copied then.

    Raises:
        Problem: It is too large, comes too slowly, or is compressed in another way than gzip or deflate.
    """
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding != "identity" and coding not in _WINDOWS:
        raise Problem(415, f"Content-Encoding: expected gzip or deflate, found {coding[:40]!r}")
    size = announced(request, -1)
    reading = request.body() if coding != "identity" or size < _LARGE else _filled(request, size, head)
    body: bytes | memoryview = await backend.in_time(reading, request.state.begin)
    if coding == "identity":
        return body
    return await backend.in_thread(unpacked, bytes(body), coding, backend.settings.max_body)


async def _filled(request: Request, size: int, head: int) -> memoryview:
    """Read a body of a known size into one piece of memory, so that what follows the head is aligned."""
    space = -head % _ALIGNED
    body, at = memoryview(bytearray(space + size))[space:], 0
    async for block in request.stream():
        body[at : at + len(block)] = block
        at += len(block)
    return body[:at]


def unpacked(body: bytes, coding: str, most: int) -> bytes:
    """Unpack a body of up to ``most`` bytes.

    Raises:
        Problem: It is larger, or damaged.

    Example:
        >>> unpacked(zlib.compress(b"bank"), "deflate", 10)
        b'bank'
    """
    unpacker = zlib.decompressobj(_WINDOWS[coding])
    try:
        whole = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise Problem(400, f"body: expected {coding}, found damaged data ({error})") from error
    if len(whole) > most:
        raise Problem(413, f"body: expected up to {most:,} bytes, found more after unpacking")
    if not unpacker.eof:
        raise Problem(400, f"body: expected {coding}, found it truncated")
    return whole
