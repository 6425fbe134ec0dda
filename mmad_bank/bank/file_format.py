"""The bank file: one safetensors file with a JSON header, checksummed, mapped into memory when it is read.

The safetensors metadata hold one entry, ``mmad_bank``, a JSON header. Its ``format`` and ``version`` say what the file
is, ``tensors`` gives every tensor's dtype, shape and checksum, ``checksum`` is BLAKE2b (16 bytes) over the other fields
(as JSON with sorted keys), and the rest belongs to the bank.

The header is always checked. The tensors' checksums (see :mod:`mmad_bank._internal.checksum`) are checked when a bank
is loaded unless the caller leaves that out: at several GB/s that is a fraction of the 0.2 s that a 350 MB bank may
take. The checksums find damage; they are no signature, and do not say who wrote the file.

A file is opened once. Header, verified bytes and mapped bytes are of that one file, whatever happens to its name.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from torch import Tensor

from mmad_bank._internal.checksum import checksum
from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.files import replacing
from mmad_bank._internal.manifest import LARGEST, Manifest, check_format, parse_json
from mmad_bank._internal.tensor_files import tensor_bytes, write_tensors
from mmad_bank.errors import FormatError, InputError

FORMAT = "mmad-bank"
VERSION = 1
LARGEST_READ = 16 << 20  # bytes of a tensor that is read; larger ones are mapped

_LARGEST_TABLE = 2 * LARGEST  # bytes; the header is a text within JSON, so its quotation marks are there twice
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # PyTorch writes either, NumPy's .npz is a zip


@dataclass(frozen=True)
class FileState:
    """What a mapped file was like when it was opened."""

    path: str
    inode: tuple[int, int]
    size: int
    changed: int

    @classmethod
    def of(cls, path: str | os.PathLike[str], status: os.stat_result) -> FileState:
        """Take down what tells a file and its contents apart."""
        return cls(os.path.realpath(path), (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Refuse to go on with a file that was changed in place: its rows are not those that were loaded.

        A file that was replaced by renaming or removed is another matter: what was mapped stays as it is.

        Raises:
            InputError: It was overwritten or cut.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            return
        if (status.st_dev, status.st_ino) == self.inode and FileState.of(self.path, status) != self:
            raise InputError(
                f"{self.path}: was changed in place while a bank was mapped from it; load it again, and replace bank"
                " files by renaming (as MemoryBank.save does)"
            )


@dataclass(frozen=True)
class BankFile:
    """What :func:`read` returns."""

    header: Manifest
    tensors: dict[str, Tensor]
    mapped: FileState | None
    """State of the file that ``vectors`` are mapped from; None if all is in memory."""


def write(path: str | os.PathLike[str], header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a bank file beside ``path`` and rename it: after a crash there is the old file or none, never half of one.

    Raises:
        InputError: The folder is missing or not writable, or the disk is full.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "version": VERSION, **header, "tensors": _table(tensors)}
    text = json.dumps({**header, "checksum": _header_checksum(header)})
    with replacing(path) as partial:
        write_tensors(partial, tensors, {"mmad_bank": text})


def read(path: str | os.PathLike[str], *, verify: bool = True, mapped: bool | None = None) -> BankFile:
    """Read a bank file: the header, and the tensors in memory or mapped.

    Args:
        path: The file.
        verify: Also compare the tensors with their checksums, which reads the whole file once.
        mapped: Map the tensors; by default those of more than ``LARGEST_READ`` bytes.

    Raises:
        InputError: There is no such file, or it cannot be read.
        FormatError: Truncated, altered, of a newer version, or no bank file at all; the message says which.
    """
    try:
        with open(path, "rb") as file:
            state = FileState.of(path, os.fstat(file.fileno()))
            header = _header(path, _table_of(path, file, state.size))
            return _read_tensors(path, file, header, state, verify, mapped)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_tensors(
    path: str | os.PathLike[str],
    file: BinaryIO,
    header: Manifest,
    state: FileState,
    verify: bool,
    mapped: bool | None,
) -> BankFile:
    listed = header.table("tensors")
    with decoding(path, "altered, its table of tensors is not valid", error=FormatError):
        tensors = _map(file, path)
    if {name: _entry(tensor) for name, tensor in tensors.items()} != {
        name: {key: entry.get(key) for key in ("dtype", "shape")}
        for name, entry in ((name, listed.table(name).content) for name in listed.content)
    }:
        raise FormatError(f"{path}: altered, its tensors are not those that its header lists")
    left = {name for name, tensor in tensors.items() if (tensor.nbytes > LARGEST_READ if mapped is None else mapped)}
    kept = {name: tensor if name in left else tensor.clone() for name, tensor in tensors.items()}
    if verify:
        # What is kept in memory is what is verified. What stays mapped is verified in a mapping of its own: the pages
        # that this touches leave the process with it.
        again = _map(file, path) if left else {}
        for name in kept:
            if listed.table(name).content.get("checksum") != checksum(
                tensor_bytes((again if name in left else kept)[name])
            ):
                raise FormatError(f"{path}: altered, its '{name}' does not match its checksum")
    return BankFile(header, kept, state if "vectors" in left else None)


def _map(file: BinaryIO, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Map the tensors of an open file (safetensors takes a name: the system has one for every open file)."""
    from safetensors import safe_open

    name = f"/proc/self/fd/{file.fileno()}"
    with safe_open(name if os.path.exists(name) else path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)


def _table_of(path: str | os.PathLike[str], file: BinaryIO, size: int) -> dict[str, Any]:
    """Return the file's table of tensors; tell truncated files, pickles and other foreign files apart before."""
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start.startswith((_ZIP, _PICKLE)) and start[8:] != b"{":
        raise FormatError(f"{path}: foreign, a pickle or zip file (.pt, .npz); nothing in it was run")
    if start and (len(start) < 9 or length > _LARGEST_TABLE or start[8:] != b"{"):
        raise FormatError(f"{path}: foreign, not a safetensors file and so no bank")
    if not start or 8 + length > size:
        raise FormatError(f"{path}: truncated within its header, {size} bytes long")
    file.seek(8)
    table = parse_json(
        file.read(length), str(path), damaged="altered, its table of tensors is not valid JSON", largest=_LARGEST_TABLE
    )
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in table.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
        if expected > 2**63:
            raise OverflowError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise FormatError(f"{path}: altered, its table of tensors is not valid") from error
    if size != expected:
        which = "truncated" if size < expected else "altered"
        raise FormatError(f"{path}: {which}, expected {expected} bytes, found {size}")
    return table


def _header(path: str | os.PathLike[str], table: dict[str, Any]) -> Manifest:
    metadata = table.get("__metadata__")
    text = metadata.get("mmad_bank") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise FormatError(f"{path}: foreign, a safetensors file that holds no memory bank")
    content = parse_json(text, str(path), damaged="altered, its header cannot be read")
    header = check_format(content, str(path), FORMAT, VERSION)
    with decoding(path, "altered, its header cannot be read", error=FormatError):
        found, expected = header.content.pop("checksum", None), _header_checksum(header.content)
    if found != expected:
        raise FormatError(f"{path}: altered, its header does not match its checksum")
    return header


def _table(tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {name: {**_entry(tensor), "checksum": checksum(tensor_bytes(tensor))} for name, tensor in tensors.items()}


def _entry(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _header_checksum(header: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16).hexdigest()
