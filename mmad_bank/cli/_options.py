"""What several commands take: options, and the checks of their values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmad_bank.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace output that exists; without this option it is refused.")
]
Device = Annotated[str, typer.Option(help="Device to compute on: cpu, cuda, cuda:1, ...")]
TrustIndex = Annotated[
    bool,
    typer.Option(
        "--trust-index",
        help="Let FAISS read the index in a file of your own; without this option it is built anew from the vectors.",
    ),
]
DatasetFolder = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Folder of the categories, raw or prepared.", show_default=False)
]
Categories = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="Categories to take (default: all).", show_default=False)
]
Category = Annotated[str | None, typer.Option(help="Category to take (default: all).", show_default=False)]
Layout = Annotated[Literal["auto", "mvtec3d", "eyecandies", "folder"], typer.Option(help="Layout of the data set.")]
Units = Annotated[
    Literal["m", "cm", "mm", "um"] | None,
    typer.Option(
        help="Unit of the point clouds' files (default: the model's if there is one, else m).", show_default=False
    ),
]
Workers = Annotated[int | None, typer.Option(help="Number of processes (default: one per core).", show_default=False)]
Batch = Annotated[int, typer.Option(help="Number of images computed together; results do not depend on it.")]


def parse_names(text: str | None) -> list[str] | None:
    """Read names joined by commas; None and nothing at all stay None.

    Example:
        >>> parse_names("bagel, cookie,"), parse_names(None)
        (['bagel', 'cookie'], None)
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    return names or None


def parse_share(text: str, name: str) -> float:
    """Read a share of something, as a number or in percent.

    Raises:
        InputError: It is neither, or not above 0 and up to 1.

    Example:
        >>> parse_share("10%", "--ratio"), parse_share("0.1", "--ratio")
        (0.1, 0.1)
    """
    word = text.strip()
    try:
        share = float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InputError(f"{name}: expected a share above 0 and up to 1, such as 0.1 or 10%, found {text!r}")
    return share


def check_device(name: str) -> Any:
    """Read a device's name and make sure that it is there."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:  # which lists all names that PyTorch knows, most of no machine here
        raise InputError(f"--device: expected cpu, cuda or cuda:N, found {name!r}") from error
    try:
        torch.zeros(1, device=device).item()  # devices without data, as "meta", fail here
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise InputError(f"--device: {name!r} cannot be used ({reason})") from error
    return device


def count_workers(wanted: int | None) -> int:
    """Return the number of processes: by default one for every core that this process may use."""
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
