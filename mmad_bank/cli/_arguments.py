"""``--set NAME=VALUE``: a method's constructor arguments from words, by the types that are declared with them."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from mmad_bank._internal.limits import bare
from mmad_bank._internal.shares import number_of
from mmad_bank._internal.terminal import say
from mmad_bank._internal.type_words import in_words
from mmad_bank.errors import InputError, did_you_mean
from mmad_bank.methods.base import Method

_OPTIONS = ("seed", "device", "few_shot", "categories", "layout", "units", "workdir")
"""Parameters that fit has options for."""
_OTHER_SPELLINGS = {"neighbors": "n_neighbors"}
"""Arguments by the names that options have for them."""
_SYNONYMS = {"learning_rate": "lr"}
"""Arguments by words that others have for them, which are not like their names."""
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


_NUMBERS: dict[Any, Callable[[str], Any]] = {int: int, float: number_of}


class Settings(NamedTuple):
    """Arguments that ``--set`` gives."""

    arguments: dict[str, Any]
    """Arguments of the constructor, by their names in Python."""
    spelled: dict[str, str]
    """``--set NAME`` as the user has spelt it, by the same names; for messages."""


def parse_settings(method: type[Method], settings: Sequence[str]) -> Settings:
    """Read ``NAME=VALUE`` words as arguments of a method's constructor.

    Names may be spelt as options are (``image-size``, ``neighbors``). Sequences are words joined by commas, None is
    ``none``.

    Raises:
        InputError: A word has no ``=``, the method has no such argument, or the value is of another type.
    """
    hints, former = argument_types(method), _former_names(method)
    found = Settings({}, {})
    for setting in settings:
        word, equals, text = setting.partition("=")
        word = word.strip()
        if not equals:
            raise InputError(f"--set: expected NAME=VALUE, found {setting!r}")
        name = word.replace("-", "_")
        name = _OTHER_SPELLINGS.get(name, name)
        if name in former:
            say(f"warning: --set {word} is --set {former[name]} now")
            name = former[name]
        if name not in hints:
            raise InputError(_word_unknown(method, word, hints))
        try:
            found.arguments[name] = parse(text.strip(), hints[name])
        except ValueError:
            raise InputError(f"--set {word}: expected {describe(hints[name])}, found {text!r}") from None
        found.spelled[name] = f"--set {word}"
    return found


def argument_named(method: type[Method], setting: str) -> str | None:
    """Return the constructor's argument that a ``NAME=VALUE`` word is of; None if the method has none of that name."""
    name = setting.partition("=")[0].strip().replace("-", "_")
    name = _OTHER_SPELLINGS.get(name, name)
    name = _former_names(method).get(name, name)
    return name if name in argument_types(method) else None


def _word_unknown(method: type[Method], word: str, hints: Iterable[str]) -> str:
    """Return the error that a method has no such argument; those that it has are spelt as the word is."""
    message = f"--set: {method.name} has no argument {word!r}"
    if word.replace("-", "_") in _OPTIONS:
        return f"{message}; expected the option --{word.replace('_', '-')} of fit"
    names = [name.replace("_", "-") if "-" in word else name for name in hints]
    meant = _SYNONYMS.get(word.replace("-", "_"), word)
    return f"{message}{did_you_mean(meant, names)}; it has {', '.join(names)}"


def argument_types(method: type[Method]) -> dict[str, Any]:
    """Return the types of a method's constructor arguments by name, ``device`` and ``seed`` left to their options."""
    return {one.name: one.hint for one in method.parameters() if one.name not in _OPTIONS}


def _former_names(method: type[Method]) -> dict[str, str]:
    """Return the names of a method's arguments by the names that they had before."""
    return {old: one.name for one in method.parameters() for old in one.former}


def parse(text: str, hint: Any) -> Any:
    """Read a value of a type: str, int, float, bool, None, Literal, tuple, or a union of those; limits are ignored.

    Raises:
        ValueError: It is none.

    Example:
        >>> parse("28,28", tuple[int, int]), parse("none", int | None), parse("yes", bool)
        ((28, 28), None, True)
        >>> parse("10%", float)
        0.1
    """
    hint = bare(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _parse_union(text, inner)
    if origin is tuple:
        return _parse_tuple(text, inner)
    if origin is Literal:
        return _one_of(text, {str(value): value for value in inner})
    if hint is bool:
        return _one_of(text.lower(), _BOOLEANS)
    if hint is type(None):
        return _one_of(text.lower(), {"none": None})
    return _NUMBERS[hint](text) if hint in _NUMBERS else text


def _one_of(text: str, values: dict[str, Any]) -> Any:
    if text not in values:
        raise ValueError(text)
    return values[text]


def _parse_union(text: str, hints: Sequence[Any]) -> Any:
    """Read a value of the first type that it is of; text, which everything is, comes last.

    Choices come first: where one of them is called none, the word means it, and None is to leave the argument out.
    """
    for hint in sorted(hints, key=lambda hint: (hint is str, get_origin(hint) is not Literal, hint is not type(None))):
        try:
            return parse(text, hint)
        except ValueError:
            continue
    raise ValueError(text)


def _parse_tuple(text: str, hints: Sequence[Any]) -> tuple[Any, ...]:
    """Read values joined by commas, as many as the type says."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if hints[-1] is ...:
        return tuple(parse(word, hints[0]) for word in words)
    if len(words) != len(hints):
        raise ValueError(text)
    return tuple(parse(word, hint) for word, hint in zip(words, hints, strict=True))


def describe(hint: Any) -> str:
    """Return words for what a type takes, as it is typed.

    Example:
        >>> describe(int | None), describe(tuple[int, int])
        ('an integer or none', '2 integers, joined by commas')
    """
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    several = any(get_origin(bare(one)) is tuple for one in members)
    return f"{in_words(hint)}, joined by commas" if several else in_words(hint)
