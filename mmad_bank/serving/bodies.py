"""Bodies of requests: read within the time, and unpacked within the limits."""

from __future__ import annotations

import sys
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from mmad_bank.serving.problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

    from mmad_bank.serving.backend import Backend

_LARGE = 65536  # bytes; smaller bodies come in one block anyway
_ALIGNED = 16  # bytes; memory begins at a multiple of that
_KEPT, _KEPT_BYTES = 64, 1 << 27  # pieces of memory that later bodies may take, and their bytes together
_rooms: deque[np.ndarray] = deque()
_lock = threading.Lock()  # of the list: a process may have several services
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def announced(request: Request, most: int) -> int:
    """Return the bytes that a request announces; the most that it may have where it does not say.

    A body in chunks is as long as they are, whatever its head says beside them: h11 lets such a head pass.
    """
    if "transfer-encoding" in request.headers:
        return most
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
    body, at = _room(space + size).data[space:], 0
    async for block in request.stream():
        body[at : at + len(block)] = block
        at += len(block)
    return body[:at]


def _room(size: int) -> np.ndarray:
    """Return memory of so many bytes that nobody uses: what a former body had, if it fits, as new memory costs more.

    It is free when nothing but the list refers to it, so nobody has to give it back.
    """
    with _lock:
        for one, references in _counted(_rooms):
            if size <= one.nbytes <= 2 * size and references <= _UNUSED:
                return one[:size]
        made = np.empty(size, np.uint8)
        if size <= _KEPT_BYTES:
            _rooms.append(made)
        while len(_rooms) > _KEPT or sum(one.nbytes for one in _rooms) > _KEPT_BYTES:
            _rooms.popleft()
        return made[:size]


def _counted(rooms: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield each piece of memory with the number of references to it, this function's own among them."""
    for one in rooms:
        yield one, sys.getrefcount(one)


# Looked at and not known: Python 3.14 does not count the reference of a call's argument, earlier ones do.
_UNUSED = next(references for _, references in _counted([np.empty(0, np.uint8)]))


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
