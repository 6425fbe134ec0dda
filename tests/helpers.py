"""How tests call the program."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from typing import Any

import typer.testing
from typer.testing import CliRunner, Result

from mmad_bank.cli import app

# The runner would make the commands with all their options anew at every call: 50 ms, a thousand times over.
typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]

PROGRAM = [sys.executable, "-m", "mmad_bank.cli"]
"""The program in a process of its own."""


def call(*arguments: object) -> Result:
    """Run a command within this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mmad-bank")


def good(*arguments: object) -> str:
    """Run a command that ends well; return its standard output."""
    result = call(*arguments)
    assert result.exit_code == 0, f"{shlex.join(map(str, arguments))}\n{result.output}"
    return result.stdout


def facts(*arguments: object) -> dict[str, Any]:
    """Run a command that ends well; return what it says with ``--json``."""
    found: dict[str, Any] = json.loads(good(*arguments, "--json"))
    return found


def refused(*arguments: object) -> str:
    """Run a command that is refused: exit code 2 and one line of error alone, which is returned."""
    result = call(*arguments)
    assert result.stderr.count("\n") == 1
    return _error_of(result)


def refused_at_last(*arguments: object) -> str:
    """Run a command that is refused after it has said other things on standard error; return the last line."""
    return _error_of(call(*arguments))


def _error_of(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines(keepends=True)[-1]
    assert line.startswith("error: ")
    return line


def small_settings(size: int, grid: int, ratio: float, calibration: str = "none") -> list[str]:
    """Return the words of ``fit`` for a PatchCore that is fitted in a moment."""
    rgb = ("rgb=efficientnet_lite0", "rgb_weights=random")
    settings = (*rgb, f"image_size={size}", f"grid={grid},{grid}", f"calibration={calibration}", f"ratio={ratio}")
    return [word for setting in settings for word in ("--set", setting)]
