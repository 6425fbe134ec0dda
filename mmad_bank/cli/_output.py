"""Output of the commands: a summary for people, or one JSON object for programs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from mmad_bank._internal import file_names
from mmad_bank._internal.files import write_text
from mmad_bank._internal.terminal import printable, say
from mmad_bank.errors import InputError

LEFT_OUT = 3
"""Exit code of a command that is done, but for samples that could not be used."""
_UNFINISHED = ".unfinished.json"
_READ_SUFFIXES = (
    ".npy", ".npz", ".safetensors", ".pt", ".pth", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".yaml", ".txt",
    ".jpe", ".jfif", ".webp", ".gif", ".jp2", ".pgm", ".ppm", ".pnm", ".pbm", ".avif",
)  # fmt: skip


def show_progress(as_json: bool) -> bool:
    """Progress bars go to a terminal only."""
    return not as_json and sys.stderr.isatty()


def command_line() -> str:
    """Return the command that the program was called by, as a shell takes it."""
    program = Path(sys.argv[0]).name
    called = ["python", "-m", "mmad_bank.cli"] if program == "__main__.py" else [program]
    return shlex.join([*called, *sys.argv[1:]])


def size(n_bytes: float) -> str:
    """Return a number of bytes in words.

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
    """Return a time in words.

    Example:
        >>> seconds(0.0123), seconds(12.3)
        ('12.3 ms', '12.30 s')
    """
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def emit(
    result: Mapping[str, Any], rows: Mapping[str, str] | Sequence[tuple[str, str]], *, title: str, as_json: bool
) -> None:
    """Print ``result`` as JSON, or ``rows`` as a table under a title.

    Args:
        result: JSON-able values with full precision: sizes in bytes, times in seconds.
        rows: The same for people: name → value with its unit, or several lines. Names of strangers in these are
            :func:`printable` already; they have no line breaks then. Pairs where strangers name rows: two may be alike.
        title: Title above the table.
        as_json: Whether to print JSON.
    """
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    from rich.console import Console
    from rich.text import Text

    # Lines are left to the terminal to wrap: in a pipe they stay whole.
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(printable(title), style="bold"))
    pairs = rows.items() if isinstance(rows, Mapping) else rows
    width = max(len(printable(name)) for name, _ in pairs)
    for name, value in pairs:
        for i, line in enumerate(value.split("\n")):
            head = Text(f"  {'' if i else printable(name):<{width}}  ", style="dim")
            console.print(head.append(printable(line), style="not dim"))


def end(left_out: Mapping[str, str], *, said: bool = False) -> None:
    """End a command that went over many samples: name those that were left out, one per line, and say so by the code.

    Args:
        left_out: Reasons why samples could not be used, by sample; each names the file.
        said: Whether the summary has named them.

    Raises:
        typer.Exit: With :data:`LEFT_OUT`, if there are any.
    """
    if not said:
        say_left_out(left_out)
    if left_out:
        raise typer.Exit(LEFT_OUT)


def say_left_out(left_out: Mapping[str, str]) -> None:
    """Name what was left out, a line each; a file that several samples are of is named once."""
    for line in dict.fromkeys(left_out.values()):
        say(f"left out: {line}")


def check_output(path: Path, name: str, *, inputs: tuple[Path, ...] = (), overwrite: bool = False) -> None:
    """Refuse an output file that could not be written, or would overwrite something, before the work and not after it.

    Args:
        path: The file to be.
        name: The option that it was given by.
        inputs: Files and folders that the command reads, which are never overwritten.
        overwrite: Whether a file that exists may be replaced.

    Raises:
        InputError: The folder is missing or cannot be written, the path is a folder, is one of the inputs, or exists.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{name}: expected a file in an existing folder, found no folder {str(folder)!r}")
    if path.is_dir():
        raise InputError(f"{name}: expected a file name, found the folder {str(path)!r}")
    if path.exists() and not path.is_file():
        raise InputError(f"{name}: expected a file, found {str(path)!r}, a device or a pipe")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{name}: no permission to write in {str(folder)!r}")
    _check_link(path, name, "file")
    check_no_input(path, name, inputs)
    if path.exists():
        check_replaced(path, name, overwrite)


def _check_link(path: Path, name: str, kind: str) -> None:
    """Refuse a link at which nothing can be made: one in a circle, or where a folder is to be, one to nothing."""
    if path.is_symlink() and not path.exists() and (kind == "folder" or os.path.islink(os.path.realpath(path))):
        raise InputError(f"{name}: expected a {kind}, found {str(path)!r}, a link that leads nowhere")


def check_no_input(path: Path, name: str, inputs: Iterable[Path]) -> None:
    """Refuse an output file that the command reads: one of the inputs, or a file in a folder that is one.

    Args:
        path: The file to be; one that is not there is nobody's input.
        name: The option that it was given by.
        inputs: Files and folders that the command reads. In folders, what is not of a kind that is read may be
            replaced: a table beside the dumps that it is about.

    Raises:
        InputError: It is read.
    """
    if not path.exists():
        return
    real = Path(os.path.realpath(path))
    is_read = real.suffix.lower() in _READ_SUFFIXES or real.name in file_names.ALL
    for other in inputs:
        if not other.exists():
            continue
        if path.samefile(other) or (is_read and other.is_dir() and Path(os.path.realpath(other)) in real.parents):
            raise InputError(f"{name}: {str(path)!r} is also an input; expected another file")


def check_outputs(
    outputs: Mapping[str, Path | None], *, inputs: tuple[Path, ...] = (), overwrite: bool = False
) -> None:
    """Do what :func:`check_output` does for several files, which must not be one and the same.

    Args:
        outputs: Files to be, by option; None where one is not wanted.
        inputs: Files and folders that the command reads, as there.
        overwrite: Whether files that exist may be replaced, as there.

    Raises:
        InputError: As there, or two outputs are one file.
    """
    places: dict[str, str] = {}
    for name, path in outputs.items():
        if path is None:
            continue
        check_output(path, name, inputs=inputs, overwrite=overwrite)
        other = places.setdefault(os.path.realpath(path), name)
        if other != name:
            raise InputError(f"{other} and {name}: expected two files, found {str(path)!r} for both")


def check_output_folder(
    path: Path, name: str, *, outputs: Iterable[str] = (), inputs: Sequence[Path] = (), overwrite: bool = False
) -> None:
    """Refuse a folder that could not be made or written in, or whose files would be overwritten.

    Args:
        path: The folder, which need not be there.
        name: The option that it was given by.
        outputs: Names of what the command writes into it.
        inputs: Files and folders that the command reads, which are never overwritten.
        overwrite: Whether what exists of those may be replaced.

    Raises:
        InputError: The path or a folder above it is a file, or cannot be written, or an output exists or is
            one of the inputs.
    """
    _check_link(path, name, "folder")
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"{name}: expected a folder, found the file {str(nearest)!r}")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{name}: no permission to write in {str(nearest)!r}")
    for output in outputs:
        check_no_input(path / output, name, inputs)
        if (path / output).exists():
            check_replaced(path / output, name, overwrite)


def check_own_folder(path: Path, name: str, inputs: Iterable[Path], *, below: bool = False) -> None:
    """Refuse a folder to be filled that is one of the inputs: what is written would lie among what is read.

    Args:
        path: The folder, which need not be there.
        name: The option that it was given by.
        inputs: Files and folders that the command reads.
        below: Whether it may not lie in one of these folders either, as what is written would be read the next time.

    Raises:
        InputError: It is one, or lies in one.
    """
    real = Path(os.path.realpath(path))
    for other in inputs:
        place = Path(os.path.realpath(other))
        if place == real or (below and place in real.parents):
            found = "is also an input" if place == real else f"lies in the input {str(other)!r}"
            raise InputError(f"{name}: {str(path)!r} {found}; expected a folder of its own")


def check_apart(files: Mapping[str, Path | None], folder: Path, name: str, outputs: Iterable[str]) -> None:
    """Refuse output files in whose place a folder, or one of the files written into it, would be put.

    Args:
        files: Files to be, by option; None where one is not wanted.
        folder: The folder.
        name: The option that it was given by.
        outputs: Names of what the command writes into it.

    Raises:
        InputError: Two outputs are one, or the folder is one of the files or below it.
    """
    place = Path(os.path.realpath(folder))
    written = {os.path.realpath(folder / output) for output in outputs}
    for option, path in files.items():
        real = None if path is None else os.path.realpath(path)
        if real is not None and (real in written or Path(real) in (place, *place.parents)):
            raise InputError(f"{option} and {name}: expected two places, found {str(path)!r} for both")


def check_replaced(path: Path, name: str, overwrite: bool) -> None:
    """Refuse to replace a file or folder that is there, unless that was asked for.

    Raises:
        InputError: It was not.
    """
    if not overwrite:
        raise InputError(f"{name}: {str(path)!r} exists; name another, or replace it with --overwrite")


@contextmanager
def unfinished(folder: Path, job: Mapping[str, Any]) -> Iterator[None]:
    """Keep a note in a folder while a command fills it, so that the same command may go on after a crash.

    Args:
        folder: Folder that is made if it is not there, and removed again if the block fails before anything is in it.
        job: Facts that tell the command from others, JSON-able.
    """
    note, made = folder / _UNFINISHED, not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _write_note(note, job)
    try:
        yield
    except BaseException:
        if list(folder.iterdir()) == [note]:
            note.unlink()
            if made:
                folder.rmdir()
        raise
    note.unlink(missing_ok=True)  # another run of the same command may have come to its end


def is_unfinished(folder: Path, job: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds what the same command left when it was stopped."""
    return _notes(folder / _UNFINISHED, job)


@contextmanager
def unfinished_outputs(
    outputs: Sequence[Path | None], job: Mapping[str, Any], *, of_many: bool = False
) -> Iterator[None]:
    """Keep a note beside the first of several outputs while they are written, as :func:`unfinished` does in a folder.

    A process that is killed between two of them leaves the first; the note lets the same command replace it.

    Args:
        outputs: The files and folders, in the order in which :func:`are_unfinished` is asked about them.
        job: Facts that tell the command from others, JSON-able.
        of_many: Whether one of them is a folder that is filled file by file.
    """
    written = [path for path in outputs if path is not None]
    if len(written) < 2 and not of_many:
        yield
        return
    note = _beside(written[0])
    note.parent.mkdir(parents=True, exist_ok=True)
    _write_note(note, job)
    yield
    note.unlink(missing_ok=True)


def are_unfinished(outputs: Sequence[Path | None], job: Mapping[str, Any]) -> bool:
    """Tell whether some of the outputs are what the same command left when it was stopped."""
    written = [path for path in outputs if path is not None]
    return bool(written) and _notes(_beside(written[0]), job)


def _beside(output: Path) -> Path:
    real = Path(os.path.realpath(output))  # "." and ".." have no name of their own
    return real.parent / f".{real.name}{_UNFINISHED}"


def _write_note(note: Path, job: Mapping[str, Any]) -> None:
    write_text(note, json.dumps(job))


def _notes(note: Path, job: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(note.read_text(encoding="utf-8")) == json.loads(json.dumps(job)))
    except (OSError, ValueError):
        return False


def say_unread(dataset: Path | Sequence[Path], categories: Sequence[str] | None, layout: str) -> None:
    """Name on standard error the folders that hold samples as a split does, but are none by their name."""
    from mmad_bank.data.layouts import unread_folders

    for folder in unread_folders(dataset, categories, layout):
        say(f"note: {folder} is not read; a split is named train, validation (val, valid) or test")
