"""What several commands take: options, and the checks of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmad_bank.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
DatasetFolder = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Folder of the categories, raw or prepared.", show_default=False)
]
Category = Annotated[str | None, typer.Option(help="Only this one (default: all).", show_default=False)]
Layout = Annotated[Literal["auto", "mvtec3d", "eyecandies", "folder"], typer.Option(help="Of the data set.")]
Batch = Annotated[int, typer.Option(help="Images computed together. Results do not depend on it.")]


def check_device(name: str) -> Any:
    """Read a device's name and make sure that it is there."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device: {name!r} cannot be used ({reason})") from error
    return device
