"""Values that JSON gave, by their kinds: damaged files hold others, and ``float("1")`` or ``float(True)`` hides it.

What is wrong becomes an :class:`InputError` that names the field; who reads the file says which one it is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmad_bank._internal.manifest import shown
from mmad_bank.errors import InputError


def table_in(content: Any, name: str) -> dict[str, Any]:
    """Return an object of an object.

    Example:
        >>> table_in({"images": 3}, "images")
        Traceback (most recent call last):
        mmad_bank.errors.InputError: images: expected an object, found 3
    """
    return as_table(_of(content, name), name)


def as_table(value: Any, name: str) -> dict[str, Any]:
    """Return a value that is an object."""
    if not isinstance(value, Mapping):
        raise InputError(f"{name}: expected an object, found {shown(value)}")
    return {str(key): one for key, one in value.items()}


def text_in(content: Any, name: str) -> str:
    """Return a text of an object."""
    value = _of(content, name)
    if not isinstance(value, str):
        raise InputError(f"{name}: expected a text, found {shown(value)}")
    return value


def number_in(content: Any, name: str) -> float:
    """Return a finite number of an object; neither a text nor a truth value is one.

    Example:
        >>> number_in({"share": True}, "share")
        Traceback (most recent call last):
        mmad_bank.errors.InputError: share: expected a finite number, found True
    """
    return _number(_of(content, name), name)


def numbers_in(content: Any, name: str) -> list[float]:
    """Return a list of finite numbers of an object."""
    values = _of(content, name)
    if not isinstance(values, list):
        raise InputError(f"{name}: expected a list of numbers, found {shown(values)}")
    return [_number(value, f"{name}[{place}]") for place, value in enumerate(values)]


def count_in(content: Any, name: str, least: int = 0) -> int:
    """Return a whole number of an object, of at least some size.

    Example:
        >>> count_in({"views": 2.5}, "views")
        Traceback (most recent call last):
        mmad_bank.errors.InputError: views: expected a whole number of at least 0, found 2.5
    """
    value = _of(content, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}: expected a whole number of at least {least}, found {shown(value)}")
    return value


def texts_in(content: Any, name: str) -> list[str]:
    """Return a list of texts of an object."""
    values = _of(content, name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{name}: expected a list of texts, found {shown(values)}")
    return values


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Name the object in errors about its fields.

    Example:
        >>> with inside("peaks"):
        ...     text_in({}, "origin")
        Traceback (most recent call last):
        mmad_bank.errors.InputError: peaks.origin: expected a value, found none
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}.{error}") from None


def _of(content: Any, name: str) -> Any:
    if not isinstance(content, Mapping):
        raise InputError(f"{name}: expected an object that has it, found {shown(content)}")
    if name not in content:
        raise InputError(f"{name}: expected a value, found none")
    return content[name]


def _number(value: Any, name: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or abs(value) > sys.float_info.max or not math.isfinite(value):
        raise InputError(f"{name}: expected a finite number, found {shown(value)}")
    return float(value)
