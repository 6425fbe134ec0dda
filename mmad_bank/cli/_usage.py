"""Usage errors in the house's words: click's, typer's and pydantic's own differ with their versions.

Their classes are told by name and attributes: some versions of typer carry their own copy of click, others check values
by pydantic.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from mmad_bank.errors import InputError, did_you_mean

_KINDS = {"int": "an integer", "float": "a number", "finite": "a number", "bool": "true or false", "path": "a path"}
"""Expected kinds, by the first word of pydantic's types of errors (``int_parsing``)."""
_CLICK_KINDS = {"integer": "an integer", "float": "a number", "boolean": "true or false"}
_LIMITS = {"greater_than_equal": "at least {ge}", "greater_than": "more than {gt}", "less_than_equal": "at most {le}",
           "less_than": "less than {lt}"}  # fmt: skip
_CHOICE = re.compile(r"'(?P<value>.*)' is not one of (?P<names>'.*')\.?")
_EXTRA = re.compile(r"unexpected extra .*?\((?!s\))(.*)\)", re.DOTALL)
_NO_VALUE = re.compile(r"'(?P<value>.*)' is not a valid (?P<kind>integer|float|boolean)\b.*", re.DOTALL)


def word_usage(error: Any) -> str:
    """Put a usage error of click or typer like every other error: the option, what was expected, what was found.

    Args:
        error: Error that has ``format_message``.
    """
    classes = [one.__name__ for one in type(error).__mro__]
    if "MissingParameter" in classes:
        return f"{_name_of(error)}: expected a value, found none"
    if "BadParameter" in classes:
        return f"{_name_of(error)}: {_word_value(error)}"
    if "NoSuchOption" in classes:
        return _word_option(error)
    if "BadOptionUsage" in classes:
        return f"{error.option_name}: {_word_count(error.message)}"
    return _word_arguments(error, " ".join(error.format_message().split()))


def word_validation(error: Any) -> str:
    """Say the first thing that pydantic has found wrong: ``expected an integer, found 'abc'``.

    Args:
        error: A ``pydantic.ValidationError``.
    """
    first = error.errors()[0]
    kind, found = str(first["type"]), first["input"]
    if kind == "value_error":
        return _word_message(str(first["ctx"]["error"]))
    if kind in _LIMITS:
        return f"expected {_LIMITS[kind].format(**first['ctx'])}, found {found}"
    expected = _KINDS.get(kind.partition("_")[0])
    return f"expected {expected}, found {found!r}" if expected else f"{first['msg']}, found {found!r}"


def _word_value(error: Any) -> str:
    """Say what is wrong with an option's value."""
    if hasattr(error.__cause__, "errors"):
        return word_validation(error.__cause__)
    return _word_message(" ".join(error.message.split()))


def _word_message(message: str) -> str:
    """Put into our words what click says of a value, or typer through pydantic."""
    choice, value = _CHOICE.fullmatch(message), _NO_VALUE.fullmatch(message)
    if choice is not None:
        names = re.findall(r"'([^']*)'", choice["names"])
        near = did_you_mean(choice["value"], names)
        return f"expected one of {', '.join(names)}, found {choice['value']!r}{near}"
    if value is not None:
        return f"expected {_CLICK_KINDS[value['kind']]}, found {value['value']!r}"
    return message


def _word_option(error: Any) -> str:
    """Ask whether another option was meant, or say where all are listed."""
    options = [one for one in error.ctx.command.params if one.param_type_name == "option"]
    known = [name.removeprefix("--") for one in options for name in one.opts if name.startswith("--")]
    near = did_you_mean(error.option_name.lstrip("-"), known).replace("'", "'--", 1)  # alike not by the dashes
    return f"{error.option_name}: no such option{near or f'; {error.ctx.command_path} --help lists them'}"


def _word_count(message: str) -> str:
    """Say that an option has too few values, or one too many."""
    wanted = re.search(r"requires (\d+) arguments", message)
    if wanted is not None:
        return f"expected {wanted[1]} values, found fewer"
    if "requires an argument" in message:
        return "expected a value, found none"
    return "expected no value, found one" if "does not take a value" in message else message


def _word_arguments(error: Any, message: str) -> str:
    """Say that there is no such command, or that arguments are left over."""
    unknown, extra = re.match(r"No such command '(.*?)'", message), _EXTRA.search(message)
    if unknown is not None:
        names = error.ctx.command.list_commands(error.ctx)
        return f"command: expected one of {', '.join(names)}, found {unknown[1]!r}{did_you_mean(unknown[1], names)}"
    if extra is not None:
        taken = [shown(one) for one in error.ctx.command.params if one.param_type_name == "argument"]
        wanted, too = (f"{' '.join(taken)} alone", " as well") if taken else ("none", "")
        return f"arguments: expected {wanted}, found {extra[1]!r}{too}"
    return message


def _name_of(error: Any) -> str:
    """Return the name of the option or argument that is wrong."""
    return "value" if error.param is None else shown(error.param)


def shown(param: Any) -> str:
    """Return an option's name, or an argument's as the help has it."""
    if param.param_type_name == "option":
        return str(param.opts[0])
    return str(param.metavar or param.name.upper()).strip("[]{}")


def check_filled(words: Sequence[str], paths: Collection[str], others: Collection[str] = ()) -> None:
    """Refuse an empty word for a path, mostly a variable of the shell that is not set: it would be the current folder.

    Args:
        words: Words that follow a command.
        paths: The command's options that are paths.
        others: Its other options that take a value: their own readers say what they expect.

    Raises:
        InputError: An argument is empty, or such an option.

    Example:
        >>> check_filled(["bank", "--out", ""], {"--out"})
        Traceback (most recent call last):
        mmad_bank.errors.InputError: --out: expected a path, found an empty word
    """
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        option = before if not word else word[:-1] if word.endswith("=") else ""
        if option in paths:
            raise InputError(f"{option}: expected a path, found an empty word")
        if not word and before not in others:
            raise InputError(f"arguments: expected no empty word, found one in place {number + 1}")
