"""The command that shows the whole way on real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmad_bank.cli._output import emit, seconds, show_progress, size

if TYPE_CHECKING:
    from mmad_bank.demo import DemoResult


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the bank.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of images and defects.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Build a bank from real images with an embedded network, and find and explain two kinds of defects in others."""
    from mmad_bank.demo import run

    result = run(out, seed=seed, progress=show_progress(as_json))
    emit(result.as_json(), describe(result), title="demo", as_json=as_json)


def describe(result: DemoResult) -> dict[str, str]:
    """Word the demo's result for people."""
    rows = {
        "features": f"{result.n_rows:,} × {result.dim}  ({size(result.n_rows * result.dim * 4)})",
        "bank": f"{result.n_vectors:,} vectors, {size(result.bank_path.stat().st_size)} in {result.bank_path}",
    }
    rows.update({name: seconds(value) for name, value in result.seconds.items()})
    for kind, values in result.scores.items():
        rows[f"scores, {kind}"] = f"{values.min():.2f} to {values.max():.2f}  ({len(values)} images)"
    return {**rows, "picture": str(result.picture_path)}
