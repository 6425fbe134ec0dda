"""Files that may be damaged or foreign: one line that names the file, whatever its decoder raises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mmad_bank.errors import InputError, MmadBankError

_SHOWN = 200  # characters of a decoder's own words


@contextmanager
def decoding(path: str | os.PathLike[str], problem: str, *, error: type[MmadBankError] = InputError) -> Iterator[None]:
    """Raise ``error`` with the file's name and ``problem`` for whatever goes wrong inside.

    Every exception is taken, on purpose. Which ones a decoder raises on damaged bytes is no promise of any library:
    fuzzing found TokenError, SyntaxError, OverflowError, struct.error, LZMAError, AssertionError, IndexError and others
    behind the documented ones, and MemoryError where a header announces terabytes. The package's own errors pass.

    Args:
        path: The file, named in the message.
        problem: Words for what is wrong with it; the decoder's own follow in brackets.
        error: Class of the package's error, which takes one message.

    Example:
        >>> with decoding("a.json", "damaged or no JSON"):
        ...     {}["format"]
        Traceback (most recent call last):
        mmad_bank.errors.InputError: a.json: damaged or no JSON (KeyError: 'format')
    """
    try:
        yield
    except MmadBankError:
        raise
    except PermissionError as reason:
        raise InputError(f"{path}: cannot be read ({reason.strerror or reason})") from reason
    except Exception as reason:
        raise error(f"{path}: {problem} ({describe(reason)})") from reason


def describe(error: BaseException) -> str:
    """Put what a decoder raised on one line; errors that do not explain themselves get their kind in front."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    text = " ".join(str(error).split())[:_SHOWN]
    if isinstance(error, (OSError, ValueError, RuntimeError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
