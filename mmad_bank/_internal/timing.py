"""Times of a program's sections, measured only where somebody asks for them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_collected: ContextVar[dict[str, float] | None] = ContextVar("mmad_bank_times", default=None)


@contextmanager
def collect_times() -> Iterator[dict[str, float]]:
    """Yield a dictionary to which every :func:`timed` section inside the block adds its seconds.

    Example:
        >>> with collect_times() as seconds, timed("sleep"):
        ...     time.sleep(0.001)
        >>> list(seconds)
        ['sleep']
    """
    seconds: dict[str, float] = defaultdict(float)
    token = _collected.set(seconds)
    try:
        yield seconds
    finally:
        _collected.reset(token)


@contextmanager
def timed(section: str) -> Iterator[None]:
    """Add the block's time to the section if times are collected; GPUs are waited for then, and only then."""
    seconds = _collected.get()
    if seconds is None:
        yield
        return
    _synchronise()
    begin = time.perf_counter()
    try:
        yield
    finally:
        _synchronise()
        seconds[section] += time.perf_counter() - begin


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
