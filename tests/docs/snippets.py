"""Programs on the documentation's pages: finding them, running them, and checking commands that cannot be run here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import typer
from helpers import good

from mmad_bank.cli import app

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(python|sh)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_NOT_OURS = ("sudo", "pip", "curl", "python", "ray", "anomalib", "mmad-bank demo")  # others, and what takes minutes
_PROGRAM: Any = typer.main.get_command(app)


class Snippet(NamedTuple):
    """A block of a page.

    Attributes:
        language: ``"python"`` or ``"sh"``.
        runs: False where the page says that it is not run.
    """

    language: str
    text: str
    runs: bool


def snippets(page: Path) -> list[Snippet]:
    """Return a page's blocks in order."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Snippet(language, text, not marker) for marker, language, text in found]


def run(page: Path) -> None:
    """Run a page's blocks in the current folder, one after another, Python's in one namespace."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for one in snippets(page):
        if one.language == "python" and one.runs:
            exec(compile(one.text, page.name, "exec"), names)
        for words in commands(one) if one.language == "sh" else ():
            check_words(words)
            if one.runs:
                good(*words[1:])


def commands(snippet: Snippet) -> Iterator[list[str]]:
    """Give the commands of a shell block that are this program's, as words."""
    for line in snippet.text.replace("\\\n", " ").splitlines():
        command = line.partition("  #")[0].strip()
        if command and not command.startswith(_NOT_OURS):
            yield shlex.split(command)


_TRAINED = {"train-uff": "m3dm", "train-adaptors": "lsfa", "train-sdf": "mdss"}
"""Methods of the commands that take the arguments of one."""


def check_words(words: list[str]) -> None:
    """See that a command and its options exist, and the method's arguments that it sets."""
    assert words[0] == "mmad-bank", words
    command = _PROGRAM.commands[words[1]]
    options = {spelling for one in command.params for spelling in (*one.opts, *one.secondary_opts)}
    for word in words[2:]:
        assert not word.startswith("--") or word in options, f"mmad-bank {words[1]}: no option {word}"
    for before, word in pairwise(words):
        if before == "--set":
            from mmad_bank.methods import method_class

            method = _TRAINED.get(words[1], words[2])
            name = word.partition("=")[0].replace("-", "_")
            assert name in method_class(method).argument_names(), f"{method}: no argument {name}"
