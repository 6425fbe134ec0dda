"""Arguments by the names that they had before."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def formerly(**names: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function take keyword arguments by former names too, with a DeprecationWarning.

    Args:
        names: Present names, by former name.

    Example:
        >>> @formerly(colour="color")
        ... def paint(*, color: str = "red") -> str:
        ...     return color
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     paint(colour="blue"), str(said[0].message)
        ('blue', 'paint: colour is color now')
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        called = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

        @functools.wraps(function)
        def call(*arguments: _P.args, **named: _P.kwargs) -> _R:
            for former in names.keys() & named.keys():
                now = names[former]
                if now in named:
                    raise TypeError(f"{called}: {former} is {now} now, found both")
                warnings.warn(f"{called}: {former} is {now} now", DeprecationWarning, stacklevel=2)
                named[now] = named.pop(former)
            return function(*arguments, **named)

        return call

    return decorate
