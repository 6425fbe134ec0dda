"""What commands print: a summary for people, or one JSON object for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmad_bank.errors import InputError


def show_progress(as_json: bool) -> bool:
    """Progress bars go to a terminal only."""
    return not as_json and sys.stderr.isatty()


def size(n_bytes: float) -> str:
    """Word a number of bytes.

    Example:
        >>> size(349_224_960)
        '333.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError


def seconds(value: float) -> str:
    """Word a time.

    Example:
        >>> seconds(0.0123), seconds(12.3)
        ('12.3 ms', '12.30 s')
    """
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def emit(result: Mapping[str, Any], rows: Mapping[str, str], *, title: str, as_json: bool) -> None:
    """Print ``result`` as JSON, or ``rows`` as a table under a title.

    Args:
        result: JSON-able values with full precision: sizes in bytes, times in seconds.
        rows: The same for people: name → value with its unit.
        title: Above the table.
        as_json: Which of the two.
    """
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    from rich.console import Console
    from rich.text import Text

    # Lines are left to the terminal to wrap: in a pipe they stay whole.
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(title, style="bold"))
    width = max(map(len, rows))
    for name, value in rows.items():
        for i, line in enumerate(value.splitlines()):
            console.print(Text(f"  {'' if i else name:<{width}}  ", style="dim").append(line, style="not dim"))


def check_output(path: Path, name: str, *, inputs: tuple[Path, ...] = ()) -> None:
    """Refuse an output that could not be written, or would overwrite an input, before the work and not after it.

    Raises:
        InputError: The folder is missing or cannot be written, the path is a folder, or is one of the inputs.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{name}: expected a file in an existing folder, found no folder {str(folder)!r}")
    if path.is_dir():
        raise InputError(f"{name}: expected a file name, found the folder {str(path)!r}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{name}: no permission to write in {str(folder)!r}")
    for other in inputs:
        if path.exists() and other.exists() and path.samefile(other):
            raise InputError(f"{name}: {str(path)!r} is also an input; expected another file")
