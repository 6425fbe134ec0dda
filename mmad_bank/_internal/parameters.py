"""Arguments that are declared once: a dataclass's fields, what values each takes, and what it does.

A field's type says what it takes: ``int``, ``float`` (finite), ``str``, ``bool``, ``None``, ``Literal``, tuples, unions
of those, and ``Annotated`` with what :mod:`mmad_bank._internal.limits` has. The docstring below it says what it does. A
class that names a field of a base again changes its default, and nothing else.

:func:`check_parameters` is the one check of them all, at the constructor; ``--set`` and the parameters' page of the
documentation read the same declarations by :func:`parameters_of`.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import os
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_origin

import numpy as np

from mmad_bank._internal.former import formerly
from mmad_bank._internal.limits import choices_of, parts
from mmad_bank._internal.type_words import in_words, limits_in_words, type_in_words
from mmad_bank.errors import InputError, UnknownArgumentError, did_you_mean

AnyClass = TypeVar("AnyClass", bound=type)

_LONGEST = 80  # characters of a value in a message


@dataclass(frozen=True)
class Parameter:
    """An argument of a constructor.

    Attributes:
        name: Name in Python, and with ``--set``.
        type: Type in words: ``"integer"``, ``"2 numbers"``, ``"text or none"``.
        default: Value where nothing is given.
        limits: Its range or choices in words; empty if there are none.
        choices: The words that it may be, or may consist of; empty if it takes others too, or none.
        documentation: Sentences on what it does, in reStructuredText; empty where the source is not at hand.
        former: Names that it had before, which still work.
        hint: Its type as it is declared, for programs.
    """

    name: str
    type: str
    default: Any
    limits: str
    choices: tuple[str, ...]
    documentation: str
    former: tuple[str, ...]
    hint: Any


def parameters_of(cls: type, former: Mapping[str, str] | None = None) -> list[Parameter]:
    """Return the arguments of a class's constructor, in its order.

    Args:
        cls: Usually a dataclass. Arguments of a constructor that is written out are text where no type is given.
        former: Names of today by former names.
    """
    declared, found = declarations(cls), []
    arguments = inspect.signature(cls).parameters
    hints = {} if arguments.keys() <= declared.keys() else _hints(getattr(cls, "__init__", cls))
    for one in arguments.values():
        hint, documentation = declared.get(one.name, (hints.get(one.name, str), ""))
        before = tuple(old for old, new in (former or {}).items() if new == one.name)
        words = type_in_words(hint), one.default, limits_in_words(hint), choices_of(hint), documentation
        found.append(Parameter(one.name, *words, former=before, hint=hint))
    return found


@lru_cache(maxsize=64)
def declarations(cls: type) -> Mapping[str, tuple[Any, str]]:
    """Return type and documentation of a class's fields by name, in the order in which dataclasses declare them.

    They are those of the first such class, or of the last that says anew what a field is: others give it a default.
    """
    found: dict[str, tuple[Any, str]] = {}
    for one in reversed(cls.__mro__):
        if "__dataclass_fields__" not in vars(one):
            continue
        hints, words = typing.get_type_hints(one, include_extras=True), _docstrings(one)
        for name in inspect.get_annotations(one):
            is_field = name in vars(one)["__dataclass_fields__"] and get_origin(hints[name]) is not typing.ClassVar
            if is_field and (name in words or name not in found):
                found[name] = (hints[name], words.get(name, ""))
    return found


def check_parameters(instance: Any) -> None:
    """Refuse values that an object's declared arguments do not take, and keep the others as plain Python values.

    So lists become tuples, NumPy's numbers Python's, and paths text: what is kept can be written as JSON.

    Raises:
        InputError: The line names the first such argument, what was expected and what was found.
    """
    for name, (hint, _) in declarations(type(instance)).items():  # type: ignore[arg-type]
        setattr(instance, name, checked(getattr(instance, name), hint, name))


def checked(value: Any, hint: Any, name: str) -> Any:
    """Return a value as plain Python has it.

    Raises:
        InputError: It does not fit the type, or what is annotated to it.

    Example:
        >>> from mmad_bank._internal.limits import Count, Rate
        >>> checked([3, 4], tuple[Count, Count], "grid"), checked(np.float64(2), Rate, "lr")
        ((3, 4), 2.0)
        >>> checked(0, Count | None, "batch")
        Traceback (most recent call last):
        mmad_bank.errors.InputError: batch: expected an integer from 1 to 2147483647 or none, found 0
    """
    try:
        return _plain(value, hint)
    except ValueError:
        shown = repr(value)
        shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."
        raise InputError(f"{name}: expected {in_words(hint)}, found {shown}") from None


def accepting_former_names(former: Mapping[str, str]) -> Callable[[AnyClass], AnyClass]:
    """Make a decorator that lets a class's constructor take its arguments by former names too, with a warning.

    The constructor refuses names that it does not have with an :class:`~mmad_bank.errors.UnknownArgumentError`.

    Args:
        former: Names of today by former names; those that the class does not have are left out.
    """

    def decorate(cls: AnyClass) -> AnyClass:
        known = inspect.signature(cls).parameters
        names = {old: now for old, now in former.items() if now in known and old not in known}
        cls.__init__ = formerly(**names)(_refusing_unknown(cls.__name__, tuple(known), cls.__init__))  # type: ignore[misc]
        return cls

    return decorate


def _refusing_unknown(called: str, known: Sequence[str], function: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor refuse arguments of other names in one line that says which is near."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> None:
        for name in named:
            if name not in known:
                near = did_you_mean(name, known) or f"; it has {', '.join(known)}"
                raise UnknownArgumentError(f"{name}: {called} has no such argument{near}")
        function(*arguments, **named)

    return call


# Values.


def _plain(value: Any, hint: Any) -> Any:
    """Return a value as plain Python has it; raises ValueError where it does not fit."""
    kind, limits, inner = parts(hint)
    for limit in limits:
        value = limit.prepare(value)
    value = _READERS[kind](value, inner)
    if not all(limit.holds(value) for limit in limits):
        raise ValueError(value)
    return value


def _one_of(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        try:
            return _plain(value, hint)
        except ValueError:
            continue
    raise ValueError(value)


def _choice(value: Any, choices: Sequence[Any]) -> Any:
    for choice in choices:
        if isinstance(value, type(choice)) and value == choice:
            return choice
    raise ValueError(value)


def _several(value: Any, hints: Sequence[Any]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(value)
    own = [hints[0]] * len(value) if hints[-1] is ... else hints
    if len(own) != len(value):
        raise ValueError(value)
    return tuple(_plain(one, hint) for one, hint in zip(value, own, strict=True))


def _integer(value: Any, _: Any) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(value)
    return int(value)


def _number(value: Any, _: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(value)
    plain = value.item() if isinstance(value, np.generic) else value
    plain = float(plain) if isinstance(plain, np.floating) else plain  # a long double's item is itself
    try:
        finite = math.isfinite(plain)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(value)
    return plain


def _text(value: Any, _: Any) -> str:
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(plain, str):
        raise ValueError(value)
    return str(plain)


def _truth(value: Any, _: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(value)
    return bool(value)


def _nothing(value: Any, _: Any) -> None:
    if value is not None:
        raise ValueError(value)


_READERS: dict[Any, Callable[[Any, Any], Any]] = {
    Union: _one_of, Literal: _choice, tuple: _several, int: _integer, float: _number, str: _text, bool: _truth,
    type(None): _nothing,
}  # fmt: skip


# Declarations.


def _hints(function: Any) -> dict[str, Any]:
    """Return the types of a function's arguments, as far as they can be told."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}


def _docstrings(cls: type) -> dict[str, str]:
    """Return what stands below a class's fields, by name; nothing where the source is not at hand."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    found: dict[str, str] = {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for before, node in zip(body, body[1:]):  # noqa: B905, RUF007
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(text, str):
            found[before.target.id] = " ".join(text.split())
    return found
