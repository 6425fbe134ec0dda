"""The page of the methods' parameters, from their constructors."""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from mmad_bank import methods
from mmad_bank.methods import Method

_HEAD = """# Methods' parameters

Every argument of every method's constructor: its type, its default, its choices, and what it does. In Python they are
keyword arguments, `M3DM(grid=(56, 56))`. In the shell they are values of `--set`, as in
`mmad-bank fit m3dm DATASET --out MODEL --set grid=56,56`. There dashes may stand for underscores, lists are
comma-separated, `none` is None, and shares may be written as percentages. `seed` and `device` have options of their
own, `--seed` and `--device`.

*Bundled* is the value that `--bundled` puts in, where it is another one.
"""
_NAMES = {int: "integer", float: "number", str: "text", bool: "yes or no", type(None): "none"}


@dataclass(frozen=True)
class Argument:
    """An argument of a method's constructor.

    Attributes:
        hint: Its type, whose Literals are the choices.
        effect: What it does.
    """

    name: str
    hint: Any
    default: Any
    effect: str


def arguments(method: type[Method]) -> list[Argument]:
    """Return the arguments of a method's constructor, from its signature and its docstring."""
    hints, effects = typing.get_type_hints(method.__init__), _effects(inspect.getdoc(method) or "")
    parameters = inspect.signature(method).parameters
    return [Argument(name, hints[name], parameters[name].default, effects[name]) for name in method.argument_names()]


def page() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *(_section(name) for name in methods.names())])


def _section(name: str) -> str:
    method = methods.method_class(name)
    bundled = method.bundled_arguments()
    lines = [f"## {method.__name__}", "", f"[What it is and how to run it](../methods/{name}.md).", ""]
    lines += ["| argument | type and choices | default | bundled | effect |", "| --- | --- | --- | --- | --- |"]
    for one in arguments(method):
        other = bundled.get(one.name, one.default)
        cells = [f"`{one.name}`", _type(one.hint), _value(one.default)]
        cells += [_value(other) if other != one.default else "", _sentence(one.effect)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def _effects(docstring: str) -> dict[str, str]:
    """Return what the section "Args:" says of each argument."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", docstring + "\n", flags=re.MULTILINE)
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1], flags=re.MULTILINE) if section else []
    return {name: " ".join(text.split()) for name, text in found}


def _sentence(text: str) -> str:
    """Put a docstring's text into Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return text[:1].upper() + text[1:]


def _type(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in inner)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin is tuple:
        many = "" if inner[-1] is ... else f"{len(inner)} "
        return f"{many}{_NAMES.get(inner[0], 'value')}s"
    return _NAMES.get(hint) or getattr(hint, "__name__", str(hint))


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"`{','.join(map(str, value))}`"
    return f"`{'none' if value is None else value}`"
