"""How the tests here call the program."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from mmad_bank.cli import app


def call(*arguments: object) -> Result:
    """Run a command within this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def small_settings(size: int, grid: int, ratio: float) -> list[str]:
    """Return the words of ``fit`` for a PatchCore that is fitted in a moment."""
    rgb = ("rgb=efficientnet_lite0", "rgb_weights=random")
    settings = (*rgb, f"image_size={size}", f"grid={grid},{grid}", f"ratio={ratio}")
    return [word for setting in settings for word in ("--set", setting)]
