"""A saved model's ``model.json``: what the folder holds, checksums, and limits for what a stranger may ask for."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmad_bank._internal.checksum import checksum
from mmad_bank._internal.file_names import MODEL as MANIFEST
from mmad_bank._internal.folders import replacing_folder
from mmad_bank._internal.manifest import Manifest, check_format, read_json
from mmad_bank.data.frame import Frame
from mmad_bank.errors import FormatError, InputError
from mmad_bank.methods.options import FORMER_NAMES

FORMAT = "mmad-bank method"
VERSION = 2
"""2: arguments have the names of today, see :data:`mmad_bank.methods.options.FORMER_NAMES`; 1: the former ones."""

_BANKS = "banks"  # the folder of a MultiBank; its bank files have checksums of their own
_BANK_FILE = re.compile(r"banks/(banks\.json|[A-Za-z0-9_-]+\.safetensors)")
_LIMITS = {  # of what the memory of loading and predicting grows with
    "size": 2**14, "pad_multiple": 2**14, "frame": 2**14, "min_points": 2**31, "n_sample": 2**31,
    "n_hypotheses": 2**31,
}  # fmt: skip


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a model folder's ``model.json``, whose values have been checked as far as they are the same for all.

    Arguments that version 0.1 saved under former names come under those of today.

    Raises:
        InputError: There is no model.
        FormatError: The file is truncated, altered, foreign or newer.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: expected a folder with {MANIFEST} that a method saved, found none")
    manifest = check_format(read_json(path), str(path), FORMAT, VERSION)
    if "checksum" in manifest.content:  # version 0.1 wrote none
        found = manifest.text("checksum")
        if found != checksum_of(manifest.content):
            raise FormatError(f"{path}: altered, it does not match its checksum")
    manifest.text("method")
    arguments = manifest.content.get("arguments")
    if isinstance(arguments, dict):
        return {**manifest.content, "arguments": {FORMER_NAMES.get(k, k): value for k, value in arguments.items()}}
    return manifest.content


def checksum_of(content: Mapping[str, Any]) -> str:
    """Return the checksum of all fields but ``checksum``: BLAKE2b (16 bytes) over them as JSON with sorted keys."""
    rest = json.dumps({name: value for name, value in content.items() if name != "checksum"}, sort_keys=True)
    return hashlib.blake2b(rest.encode(), digest_size=16).hexdigest()


def write_model(folder: str | os.PathLike[str], facts: Mapping[str, Any], save: Callable[[Path], Any]) -> None:
    """Write a model's folder, complete or not at all, in the place of a model that is there.

    Args:
        folder: Folder of the model.
        facts: Values of the manifest beside those that are added here: ``learnt``, ``files``, and the checksum of it
            all.
        save: Function that writes what was learnt into a folder, and returns what the manifest says of it.

    Raises:
        InputError: The folder holds something else, or cannot be written.
    """
    check_replaceable(Path(folder))
    with replacing_folder(folder) as into:
        content = {"format": FORMAT, "version": VERSION, **facts, "learnt": save(into)}
        content["files"] = describe_files(into)
        content["checksum"] = checksum_of(content)
        (into / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def blaming_manifest(folder: Path) -> Iterator[None]:
    """Name the manifest for values in it that a constructor refuses; what names a file of the folder passes.

    Raises:
        FormatError: In place of an :class:`~mmad_bank.errors.InputError` that names an argument only.
    """
    try:
        yield
    except InputError as error:
        if str(folder) in str(error):
            raise
        raise FormatError(f"{folder / MANIFEST}: altered or of another version ({error})") from error


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and checksum of each file that a method wrote into its folder; banks have their own."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: {"bytes": path.stat().st_size, "checksum": _file_checksum(path)}
        for name, path in names.items()
        if not (name.startswith(f"{_BANKS}/") and name.endswith(".safetensors"))
    }


def verify_files(folder: Path, files: Any, *, contents: bool = True) -> None:
    """Compare a model's files with what was noted of them.

    Args:
        folder: Folder of the model.
        files: Sizes and checksums that :func:`describe_files` gave.
        contents: Whether to compare checksums too, which reads the files, and not only sizes.

    Raises:
        FormatError: One is missing, truncated or altered.
    """
    listed = Manifest(str(folder / MANIFEST), files)
    for name in listed.content:
        facts, path = listed.table(name), folder / name
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or ".." in name:
            raise FormatError(f"{folder / MANIFEST}: altered, expected files in the model's folder, found {name!r}")
        if not path.is_file():
            raise FormatError(f"{path}: missing, the model was saved with it")
        try:
            size = path.stat().st_size
            if size != facts.integer("bytes"):
                which = "truncated" if size < facts.integer("bytes") else "altered"
                raise FormatError(f"{path}: {which}, expected {facts.integer('bytes')} bytes, found {size}")
            if contents and _file_checksum(path) != facts.text("checksum"):
                raise FormatError(f"{path}: altered, it does not match its checksum")
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def check_sizes(preprocessing: Mapping[str, Any], place: str) -> None:
    """Refuse numbers of a preprocessing out of any use, which would take memory when a model predicts.

    Raises:
        FormatError: The message names the argument.
    """
    for name, largest in _LIMITS.items():
        value = preprocessing.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= largest:
            raise FormatError(f"{place}: altered, expected 0 to {largest:g} for '{name}', found {str(value)[:60]}")


def check_replaceable(target: Path) -> None:
    """Refuse to replace a folder with anything in it that no method saved.

    Raises:
        InputError: The message names what was found.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target}: expected a new folder or a saved model to replace, found something else")
    names = [path.relative_to(target).as_posix() for path in sorted(target.rglob("*")) if not path.is_dir()]
    if not names:
        return
    if MANIFEST not in names:
        raise InputError(f"{target}: expected a new folder or a saved model to replace, found something else")
    try:
        files = read_manifest(target).get("files")
    except FormatError:  # a damaged model may be replaced
        files = None
    for name in names:
        listed = name in files if isinstance(files, dict) else re.fullmatch(r"[^/]+\.safetensors", name)
        if not (listed or name == MANIFEST or _BANK_FILE.fullmatch(name)):
            raise InputError(f"{target}: expected nothing but a saved model to replace, found {name} in it")


def _file_checksum(path: Path) -> str:
    return checksum(np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8))


def pack_frames(frames: Sequence[Frame | None]) -> dict[str, Any]:
    """Return frames for a JSON file, each one once: the pictures of a category mostly have one size."""
    different = list(dict.fromkeys(frame for frame in frames if frame is not None))
    numbers = {frame: number for number, frame in enumerate(different)}
    return {
        "frames": [frame.as_text() for frame in different],
        "of": [None if frame is None else numbers[frame] for frame in frames],
    }


def unpack_frames(content: Mapping[str, Any], n: int) -> list[Frame | None]:
    """Read what :func:`pack_frames` gave.

    Raises:
        ValueError: It does not fit ``n`` samples.
    """
    frames = [Frame.from_text(str(text)) for text in content["frames"]]
    chosen = [None if number is None else frames[range(len(frames))[number]] for number in content["of"]]
    if len(chosen) not in (0, n):
        raise ValueError(f"frames of {len(chosen)} samples, expected {n}")
    return chosen
