"""The pages of the command line, from the program itself."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from mmad_bank.cli import app

_PROGRAM = typer.main.get_command(app)
_FUNCTIONS = {
    command.callback.__name__.replace("_", "-"): command.callback
    for command in app.registered_commands
    if command.callback
}
_WORDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
_CELL = str.maketrans({"|": r"\|", "\n": " "})


def names() -> list[str]:
    """Name the commands, in the order of the program's help."""
    return list(_PROGRAM.commands)  # type: ignore[attr-defined]


def overview() -> str:
    """Return the page that lists the commands."""
    lines = [
        "# Command line",
        "",
        inspect.cleandoc(_PROGRAM.help or ""),
        "",
        "| command | what it does |",
        "| --- | --- |",
        *(f"| [`mmad-bank {name}`]({name}.md) | {_cell(_summary(_command(name)))} |" for name in names()),
        "",
        "Every command takes `--help`. [What all commands share](../command-line-notes.md) has files, exit codes,"
        " `--json` and completion.",
        "",
    ]
    return "\n".join(lines)


def page(name: str) -> str:
    """Return a command's page."""
    command = _command(name)
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    lines = [f"# mmad-bank {name}", "", _help(command), "", "```text", _usage(name, command), "```", ""]
    lines += _table("Arguments", ("argument", "what it is"), [(_argument(one), _text(one)) for one in arguments])
    hints = _hints(name)
    rows = [(_spelling(one), _value(one, hints[one.name]), _default(one), _text(one)) for one in options]
    lines += _table("Options", ("option", "value", "default", "what it does"), rows)
    return "\n".join(lines)


def _command(name: str) -> Any:
    return _PROGRAM.commands[name]  # type: ignore[attr-defined]


def _help(command: Any) -> str:
    """Return a command's help; what stands behind a form feed is for programmers."""
    return inspect.cleandoc((command.help or "").split("\f")[0])


def _summary(command: Any) -> str:
    return _help(command).split("\n\n")[0]


def _hints(name: str) -> dict[str, Any]:
    """Return the types of a command's parameters (typer's own objects tell them, in each version in another way)."""
    return typing.get_type_hints(_FUNCTIONS[name])


def _usage(name: str, command: Any) -> str:
    arguments = (_argument(one).strip("`") for one in command.params if one.param_type_name == "argument")
    needed = (
        f"{one.opts[0]} {one.metavar or one.name.upper()}" for one in command.params if _is_option(one) and one.required
    )
    return " ".join(["mmad-bank", name, *arguments, *needed, "[OPTIONS]"])


def _table(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    lines = [
        f"## {title}",
        "",
        '<div class="described" markdown="1">',
        "",
        f"| {' | '.join(heads)} |",
        "| --- " * len(heads) + "|",
    ]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), "", "</div>", ""]


def _cell(text: str) -> str:
    return text.translate(_CELL)


def _text(parameter: Any) -> str:
    return (parameter.help or "").strip() + (" Required." if parameter.required and _is_option(parameter) else "")


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return f"`{name}{'...' if parameter.nargs == -1 and '...' not in name else ''}`"


def _spelling(parameter: Any) -> str:
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _value(parameter: Any, hint: Any) -> str:
    if parameter.is_flag:
        return ""
    inner = [one for one in get_args(hint) if one is not type(None)]
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if inner and parameter.metavar is None:  # a list, or a type or None
        return _value(parameter, inner[0]) + (", several times" if get_origin(hint) is list else "")
    return f"`{parameter.metavar or _WORDS[hint]}`"


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.is_flag or parameter.required or value is None or not parameter.show_default:
        return ""
    values = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(f"`{one}`" for one in values)
