"""The log: a line on standard error for what happens, for people or for programs."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from typing import Any, TextIO

from mmad_bank._internal.terminal import printable
from mmad_bank.serving.settings import LogFormat


class Log:
    """A log.

    Args:
        form: ``"text"``, ``"json"`` (an object on each line, with ``time``, ``level`` and ``event``) or ``"none"``.
        stream: Where it goes; default: standard error.

    Example:
        >>> Log("text", sys.stdout).say("model loaded", clock=0.0, model="tile", seconds=0.25)
        1970-01-01T00:00:00.000Z info model loaded model=tile seconds=0.25
    """

    def __init__(self, form: LogFormat, stream: TextIO | None = None) -> None:
        self._form = form
        self._stream = stream

    def say(self, event: str, *, level: str = "info", clock: float | None = None, **facts: Any) -> None:
        """Write a line; facts that are None are left out. A stream that takes nothing any more harms nobody."""
        if self._form == "none":
            return
        now = time.time() if clock is None else clock
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        known = {name: value for name, value in facts.items() if value is not None}
        if self._form == "json":
            line = json.dumps({"time": stamp, "level": level, "event": event, **known}, default=str)
        else:
            words = " ".join(f"{name}={_quoted(printable(_word(value)))}" for name, value in known.items())
            line = f"{stamp} {level} {event} {words}".rstrip()
        with suppress(OSError, ValueError):  # a pipe that nobody reads, a full disk, a closed file
            print(line, file=self._stream or sys.stderr, flush=True)


def _quoted(word: str) -> str:
    """Quote what would be taken for several facts.

    Example:
        >>> print(_quoted("tile"), _quoted("tile status=200"))
        tile "tile status=200"
    """
    return json.dumps(word, ensure_ascii=False) if any(one in word for one in ' "') else word


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ",".join(f"{name.replace(' ', '-')}:{_word(one)}" for name, one in value.items())
    return str(value)
