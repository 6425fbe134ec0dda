"""How the tests here call the program."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from mmad_bank.cli import app


def call(*arguments: object) -> Result:
    """Run a command within this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: object) -> str:
    """Run a command that ends well; return its standard output."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """Run a command that is refused: exit code 2 and one line of error alone, which is returned."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def small_settings(size: int, grid: int, ratio: float) -> list[str]:
    """Return the words of ``fit`` for a PatchCore that is fitted in a moment."""
    rgb = ("rgb=efficientnet_lite0", "rgb_weights=random")
    settings = (*rgb, f"image_size={size}", f"grid={grid},{grid}", f"ratio={ratio}")
    return [word for setting in settings for word in ("--set", setting)]
