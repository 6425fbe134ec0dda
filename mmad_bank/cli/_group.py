"""One way out for every error: a line on standard error and an exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from mmad_bank.cli import _signals
from mmad_bank.errors import MmadBankError

BAD_INPUT = 2
UNEXPECTED = 1
DEBUG_VARIABLE = "MMAD_BANK_DEBUG"


class _Stop(Exception):
    """A command's end by an error: the line to print, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _one_line(error: BaseException) -> str:
    """Put an error's text on one line."""
    return " ".join(str(error).split())


def _describe_os_error(error: OSError) -> str:
    """Say which file and what happened, as the operating system words it."""
    if error.strerror is None:
        return _one_line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{_place(error)}the disk is full: {error.strerror}"
    return f"{_place(error)}{error.strerror}"


def _place(error: OSError) -> str:
    name = error.filename
    return f"{os.fsdecode(name)}: " if isinstance(name, (str, bytes, os.PathLike)) else ""


def _translate(error: BaseException) -> _Stop:
    """Turn what a command raised into a line and an exit code."""
    # A signal that came within a library may leave it as any error.
    if isinstance(error, KeyboardInterrupt) or _signals.received():
        return _Stop(_signals.word(), _signals.code())
    if isinstance(error, MmadBankError):
        return _Stop(_one_line(error), BAD_INPUT)
    if isinstance(error, OSError):
        return _Stop(_describe_os_error(error), BAD_INPUT)
    if isinstance(error, MemoryError):
        return _Stop(f"out of memory {_one_line(error)}".strip(), BAD_INPUT)
    kind = type(error).__name__
    return _Stop(f"unexpected {kind}: {_one_line(error)} (set {DEBUG_VARIABLE}=1 for the traceback)", UNEXPECTED)


class Group(TyperGroup):
    """A command group whose commands may raise: usage errors and bad input end in ``error: ...`` and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; translate what it raises."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, _Stop):
            raise
        except BrokenPipeError:
            # Whoever read standard output has closed it (`mmad-bank info BANK | head`): nothing left to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(UNEXPECTED) from None
        except (Exception, KeyboardInterrupt) as error:
            if hasattr(error, "format_message") or os.environ.get(DEBUG_VARIABLE):
                raise
            raise _translate(error) from error

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program and leave with its exit code."""
        standalone = extra.get("standalone_mode", True)
        extra["standalone_mode"] = False
        if not standalone:
            return super().main(*args, **extra)
        try:
            code = super().main(*args, **extra)
        except _Stop as stop:
            self._leave(str(stop), stop.code)
        except typer.Abort:
            self._leave(_signals.word(), _signals.code())
        except Exception as error:
            # Click's usage errors word themselves; typer carries its own copy of click in some versions.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            self._leave(" ".join(message().split()), BAD_INPUT)
        if _signals.received():  # between commands typer itself makes an exit code of an interrupt
            self._leave(_signals.word(), _signals.code())
        sys.exit(code if isinstance(code, int) else 0)

    @staticmethod
    def _leave(message: str, code: int) -> None:
        sys.stdout.flush()
        print(f"error: {message}", file=sys.stderr)
        sys.exit(code)
