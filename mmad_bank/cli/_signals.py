"""Ctrl-C and SIGTERM end the program as an error does: files whole, one line, no traceback, exit code 130 or 143.

This module is imported before anything else of the program and must stay light.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

_PATIENCE = 1.0  # seconds; `timeout` sends its signal twice, to the process and to its group
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_received: int | None = None
_received_at = 0.0


def received() -> bool:
    """Tell whether the program was asked to stop."""
    return _received is not None


def word() -> str:
    """Say what happened, by the signal that came; Ctrl-C is the default."""
    return _WORDS[signal.Signals(_received or signal.SIGINT)]


def note(error: BaseException, words: str) -> None:
    """Let the last line say more where this error ends the program by a signal."""
    error.__dict__["note"] = words


def line(error: BaseException) -> str:
    """Say what happened, and what has been noted of it."""
    return "; ".join([word(), *([error.__dict__["note"]] if "note" in error.__dict__ else [])])


def code() -> int:
    """Return the exit code that belongs to it, as shells count."""
    return 128 + (_received or signal.SIGINT)


def run(program: Callable[[], object]) -> None:
    """Run a program and let the two signals unwind its stack, so that temporary files are removed.

    A second signal, a second or more after the first, ends it at once: what it was writing stays a hidden file, which
    the next run removes. Only the program itself uses this, never an import.
    """
    hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    before = {number: signal.getsignal(number) for number in _WORDS}
    try:
        for number in _WORDS:
            signal.signal(number, _stop)
        program()
    except BaseException as error:  # a library may turn an interrupt into an error of its own
        if not received():
            raise
        if not isinstance(error, SystemExit):
            _say(line(error))
        _leave()
    finally:
        # The work is done or given up. From here on a signal ends the interpreter's own cleaning up without words.
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler if handler is signal.SIG_IGN else signal.SIG_DFL)
        sys.unraisablehook = hook


def _say(words: str) -> None:
    os.write(2, f"error: {words}\n".encode(errors="backslashreplace"))


def _leave() -> None:
    """End with the exit code, after what has been registered for the end.

    Python itself would die of SIGINT here, and give no exit code, if the interrupt had passed through an ``exec``.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - nothing public runs them without ending the interpreter
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code())


def _stop(signum: int, frame: FrameType | None) -> None:
    global _received, _received_at
    now = time.monotonic()
    if _received is None and _initializes_an_extension(frame):
        _later(signum)
        return
    if _received is None:
        _received, _received_at = signum, now
        raise KeyboardInterrupt
    if now - _received_at > _PATIENCE:
        _say(word())
        os._exit(code())


def _initializes_an_extension(frame: FrameType | None) -> bool:
    """Say whether an extension module is being loaded: C code that imports another prints what is raised in there."""
    while frame is not None:
        loads = frame.f_code.co_name in ("create_module", "exec_module")
        if loads and isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _later(signum: int) -> None:
    """Take a signal once more in a moment."""
    signal.signal(signal.SIGALRM, lambda number, frame: _stop(signum, frame))
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def _unraisable(problem: Any) -> None:
    """Raise an interrupt again that came where nothing can be raised, such as a callback of the import machinery."""
    global _received
    if isinstance(problem.exc_value, KeyboardInterrupt) and _received is not None:
        signum, _received = _received, None
        _later(signum)
    else:
        sys.__unraisablehook__(problem)
