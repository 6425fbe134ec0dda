"""The command that follows a folder of features which is still being written: follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.files import real_path
from mmad_bank._internal.progress import doing
from mmad_bank.cli._command import add
from mmad_bank.cli._dumps import AxesOfMaps, ByImage, Key, Reading
from mmad_bank.cli._following import Following, Times, status_line
from mmad_bank.cli._options import Device, Json
from mmad_bank.cli._output import check_output, emit, end, show_progress
from mmad_bank.cli._swapped import is_bank
from mmad_bank.cli._values import check_device, parse_duration
from mmad_bank.cli._words import BankPrecision, option
from mmad_bank.cli.bank import describe_bank, describe_bank_rows
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.bank import StreamingBank


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, follow)


def follow(
    bank_file: Annotated[
        Path, typer.Argument(metavar="BANK", help="Bank file to write, or to go on with.", show_default=False)
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder that feature files come into.", show_default=False)
    ],
    bank_size: Annotated[int | None, option("--bank-size", "that the bank has at most; a new bank needs it")] = None,
    factor: Annotated[float | None, option("--factor")] = None,
    standardize: Annotated[bool, option("--standardize")] = False,
    until_idle: Annotated[str, option("--until-idle")] = "none",
    poll: Annotated[str, option("--poll")] = "1s",
    patience: Annotated[str, option("--patience")] = "30s",
    save_every: Annotated[str, option("--save-every")] = "1m",
    key: Key = None,
    axes: AxesOfMaps = "auto",
    by_image: ByImage = False,
    bank_precision: Annotated[BankPrecision, option("--bank-precision", "")] = "auto",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Keep a bank of at most so many vectors for a folder that normal features go on coming into.

    Every file is read once, when it is whole, and may be removed then. The bank covers all rows that it has ever seen
    within a proved factor of the best possible choice of as many vectors.

    Ctrl-C and SIGTERM end it with the bank saved. Started again, it goes on where it stopped: the bank file says which
    files were taken. Files that cannot be used are named and left out, and the exit code is 3.
    """
    times = Times(
        _time(poll, "--poll"), _time(patience, "--patience"), _time(save_every, "--save-every"),
        parse_duration(until_idle, "--until-idle"),
    )  # fmt: skip
    _check_places(bank_file, folder)
    target = check_device(device)
    with _alone(bank_file):
        with doing("loading"):
            stream = _open(bank_file, bank_size, factor, standardize, bank_precision, target)
        begun = stream.rows_seen
        with status_line(show_progress(as_json)) as show:
            following = Following(stream, bank_file, folder, Reading(key, axes, by_image), times, show)
            following.run()
    if not len(stream):
        found = "none that can be used" if following.left_out else "none"
        raise InputError(f"{folder}: expected feature files (.npy, .npz, .safetensors, .pt), found {found}")
    result, rows = _facts(stream, bank_file)
    result |= {"new_rows": stream.rows_seen - begun, "files": following.files, "left_out": following.left_out}
    rows["taken"] = f"{stream.rows_seen - begun:,} rows of {following.files:,} files"
    emit(result, rows, title=f"followed {folder} into {bank_file}", as_json=as_json)
    end(following.left_out, said=True)


def _time(text: str, name: str) -> float:
    value = parse_duration(text, name)
    if value is None or value <= 0:
        raise InputError(f"{name}: expected a time above 0, such as 10s, found {text!r}")
    return value


def _check_places(bank_file: Path, folder: Path) -> None:
    """Refuse a folder that is none, and a bank that would be taken for features.

    Raises:
        InputError: It is one of these.
    """
    if is_bank(folder):
        raise InputError(f"{folder}: is a memory bank; expected BANK FOLDER in this order")
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder that feature files come into, found none")
    check_output(bank_file, "BANK", overwrite=True)
    if real_path(folder) in real_path(bank_file).parents:
        raise InputError(f"BANK: {str(bank_file)!r} lies in the folder to be followed; expected a place outside")


@contextmanager
def _alone(bank_file: Path) -> Iterator[None]:
    """Hold a lock beside the bank file, which the system lets go of whatever becomes of this process.

    Raises:
        InputError: Another process holds it, or there is no place for it.
    """
    from filelock import FileLock, Timeout

    real = real_path(bank_file)
    lock = FileLock(real.with_name(f".{real.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"BANK: expected a bank that no other process follows into, found {bank_file} in use"
        ) from None
    except OSError as error:
        raise InputError(f"BANK: cannot lock {bank_file} ({error.strerror or error})") from None
    try:
        yield
    finally:
        lock.release()


def _open(
    path: Path, bank_size: int | None, factor: float | None, standardize: bool, precision: BankPrecision, device: Any
) -> StreamingBank:
    """Return the bank to go on with, or a new one.

    Raises:
        InputError: An option is missing or another than the bank's own.
    """
    from mmad_bank.bank import StreamingBank

    if not path.exists():
        if bank_size is None:
            raise InputError(f"--bank-size: expected the largest number of vectors of the new bank {path}, found none")
        return StreamingBank(
            bank_size, factor=4.0 if factor is None else factor, standardize=standardize, bank_precision=precision,
            device=device,
        )  # fmt: skip
    stream = StreamingBank.load(path, device=device)
    for name, wanted, own in (("--bank-size", bank_size, stream.size), ("--factor", factor, stream.factor)):
        if wanted is not None and wanted != own:
            raise InputError(f"{name}: expected {own:g}, as {path} has, or nothing, found {wanted:g}")
    if standardize and not stream.standardizes:
        raise InputError(f"--standardize: expected nothing, as {path} was begun without it; begin another bank")
    return stream


def _facts(stream: StreamingBank, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what is said of a stream's bank, JSON-able and for people."""
    bank = stream.bank
    result = {
        "bank": str(path), "size": stream.size, "rows": stream.rows_seen, **describe_bank(bank, path),
        "optimum": stream.optimum, "factor": stream.factor, "extractor": bank.extractor,
    }  # fmt: skip
    rows = {
        **describe_bank_rows(bank, path),
        "radius": f"{stream.radius:.6g} (no row seen is farther)",
    }
    return result, rows
