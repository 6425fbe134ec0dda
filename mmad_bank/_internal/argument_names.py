"""Errors about arguments, by the names that whoever gave them knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmad_bank.errors import InputError


@contextmanager
def argument_called(**names: str) -> Iterator[None]:
    """Put a caller's own names of arguments in errors about them.

    Args:
        names: Names that the caller has, by those of the function that is called.

    Example:
        >>> with argument_called(layers="rgb_layers"):
        ...     raise InputError("layers: expected some of 0 to 6, found (99,)")
        Traceback (most recent call last):
        mmad_bank.errors.InputError: rgb_layers: expected some of 0 to 6, found (99,)
    """
    try:
        yield
    except InputError as error:
        name, colon, rest = str(error).partition(": ")
        if type(error) is not InputError or not colon or name not in names:
            raise
        raise InputError(f"{names[name]}: {rest}") from error
