"""The command that shows the whole way, from a synthetic data set to an explained result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmad_bank.cli._command import add
from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._options import Json, Overwrite, Workers
from mmad_bank.cli._output import command_line, emit, seconds, show_progress
from mmad_bank.cli._values import count_workers
from mmad_bank.cli._words import option


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, demo)


def demo(
    out: Annotated[Path, option("--out", "Folder", ", with data, model, report and picture")] = Path("demo"),
    seed: Annotated[int, option("--seed", "everything random")] = 0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Synthesize a data set, fit M3DM with bundled extractors, evaluate it, and write an HTML report.

    Where Open3D cannot be loaded, PatchCore takes the pictures alone.

    Stopped and run again with the same --out, it goes on where it was. A finished demo is made anew with --overwrite.
    """
    from mmad_bank.demo import run

    with going_on():
        result = run(
            out, seed=seed, workers=count_workers(workers), overwrite=overwrite, progress=show_progress(as_json),
            command=command_line(),
        )  # fmt: skip
    if not as_json:
        result.summary.print()
    rows = {
        "report": f"{result.report}\nopen it in a browser: {result.report.resolve().as_uri()}",
        "picture": str(result.picture),
        "model": str(result.model),
        "time": ", ".join(f"{name} {seconds(taken)}" for name, taken in result.seconds.items()),
    }
    emit(result.as_json(), rows, title="demo", as_json=as_json)
