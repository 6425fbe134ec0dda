"""Types of arguments in words, for messages and for the documentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_origin

from mmad_bank._internal.limits import SomeOf, bare, parts

_KINDS = {
    int: ("an integer", "integers"), float: ("a number", "numbers"), str: ("text", "texts"),
    bool: ("true or false", "true or false"), type(None): ("none", "none"),
}  # fmt: skip


def in_words(hint: Any) -> str:
    """Return words for what a type takes.

    Example:
        >>> from typing import Annotated
        >>> from mmad_bank._internal.limits import Count, Range
        >>> in_words(Annotated[int, Range(1, 9)] | Literal["auto"] | None), in_words(tuple[Count, ...])
        ('an integer from 1 to 9, auto or none', 'one or more integers from 1 to 2147483647')
        >>> in_words(Literal["a", "b"]), in_words(Annotated[tuple[str, ...], SomeOf(("a", "b"))])
        ('one of a, b', 'some of a, b, each once')
    """
    kind, limits, inner = parts(hint)
    for limit in limits:
        if isinstance(limit, SomeOf):
            return f"some of {', '.join(limit.choices)}, each once"
    if kind is Union:
        return _joined([word for one in inner for word in _alternatives(one, in_words)])
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind is tuple:
        own, own_limits, _ = parts(inner[0])
        number = "one or more" if inner[-1] is ... else str(len(inner))
        return " ".join([number, _kind(own)[1], *(limit.words for limit in own_limits if limit.words)])
    return " ".join([_kind(kind)[0], *(limit.words for limit in limits if limit.words)])


def limits_in_words(hint: Any) -> str:
    """Return words for the range or the choices of a type, for people; empty if there are none.

    Example:
        >>> from mmad_bank._internal.limits import Count
        >>> limits_in_words(Count | Literal["auto"] | None), limits_in_words(Literal["a", "b"])
        ('at least 1', 'a, b')
    """
    kind, limits, inner = parts(hint)
    if kind is Union:  # whose choices are told with the type
        ranges = [limits_in_words(one) for one in inner if get_origin(one) is not Literal]
        return "; ".join(filter(None, ranges))
    if kind is Literal:
        return ", ".join(map(str, inner))
    if kind is tuple and not limits:
        return limits_in_words(inner[0])
    told = [", ".join(one.choices) if isinstance(one, SomeOf) else getattr(one, "told", "") for one in limits]
    return ", ".join(told).removeprefix("of ").removeprefix("from ")


def type_in_words(hint: Any) -> str:
    """Return words for a type alone."""
    kind, _, inner = parts(hint)
    if kind is Union:
        return _joined([word for one in inner for word in _alternatives(one, type_in_words)])
    if kind is Literal:
        return type_in_words(type(inner[0]))
    if kind is tuple:
        number = "" if inner[-1] is ... else f"{len(inner)} "
        return number + _kind(bare(inner[0]))[1]
    return _kind(kind)[0].removeprefix("an ").removeprefix("a ")


def _alternatives(hint: Any, word: Callable[[Any], str]) -> list[str]:
    """Return words for a member of a union: choices count one by one."""
    kind, _, inner = parts(hint)
    return list(map(str, inner)) if kind is Literal else [word(hint)]


def _joined(words: Sequence[str]) -> str:
    words = list(dict.fromkeys(words))  # a choice may be called none, beside None
    return " or ".join([", ".join(words[:-1]), words[-1]])


def _kind(kind: Any) -> tuple[str, str]:
    return _KINDS.get(kind, ("text", "texts"))
