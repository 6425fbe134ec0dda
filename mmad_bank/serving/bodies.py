"""Bodies of requests: read within the time, and unpacked within the limits."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from mmad_bank.serving.problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

    from mmad_bank.serving.backend import Backend

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def announced(request: Request, most: int) -> int:
    """Return the bytes that a request announces; the most that it may have where it does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else most


async def read_body(request: Request, backend: Backend) -> bytes:
    """Read a body, and unpack it if it is compressed.

    Raises:
        Problem: It is too large, comes too slowly, or is compressed in another way than gzip or deflate.
    """
    body: bytes = await backend.in_time(request.body(), request.state.begin)
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding == "identity":
        return body
    if coding not in _WINDOWS:
        raise Problem(415, f"Content-Encoding: expected gzip or deflate, found {coding[:40]!r}")
    return await backend.in_thread(unpacked, body, coding, backend.settings.max_body)


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
