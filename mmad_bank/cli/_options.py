"""What several commands take: options, and the checks of their values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmad_bank.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is at the output's place; without it the command refuses.")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
DatasetFolder = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Folder of the categories, raw or prepared.", show_default=False)
]
Category = Annotated[str | None, typer.Option(help="Only this one (default: all).", show_default=False)]
Layout = Annotated[Literal["auto", "mvtec3d", "eyecandies", "folder"], typer.Option(help="Of the data set.")]
Workers = Annotated[int | None, typer.Option(help="Processes (default: one a core).", show_default=False)]
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


def count_workers(wanted: int | None) -> int:
    """Return the number of processes: by default one for every core that this process may use."""
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
