"""A command of the program: its usage line, and its help out of the docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from mmad_bank.cli._usage import shown


class Command(TyperCommand):
    """A command whose usage line names the arguments as its help does.

    Some versions of typer set them in braces, with dots behind the dots that stand there.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line behind the command's name."""
        arguments = [one for one in self.params if one.param_type_name == "argument"]
        return ["[OPTIONS]", *(shown(one) if one.required else f"[{shown(one)}]" for one in arguments)]


def add(app: typer.Typer, *commands: Callable[..., None]) -> None:
    """Add functions to the program as commands.

    Args:
        app: The program.
        commands: Functions; the lines of a paragraph of their docstrings are joined, as the terminal breaks them.
    """
    for command in commands:
        paragraphs = (inspect.getdoc(command) or "").split("\n\n")
        app.command(cls=Command, help="\n\n".join(" ".join(text.split()) for text in paragraphs))(command)
