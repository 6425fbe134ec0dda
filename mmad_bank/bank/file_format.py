"""The bank file: one safetensors file with a JSON header, checksummed, mapped into memory when it is read.

The safetensors metadata hold one entry, ``mmad_bank``, a JSON header. Its ``format`` and ``version`` say what the file
is, ``tensors`` gives every tensor's dtype, shape and checksum, ``checksum`` is BLAKE2b (16 bytes) over the other fields
(as JSON with sorted keys), and the rest belongs to the bank.

The header is always checked. The tensors' checksums (see ``_checksum``) are checked when a bank is loaded unless the
caller leaves that out: at several GB/s that is a fraction of the 0.2 s that a 350 MB bank may take. The checksums find
damage; they are no signature, and do not say who wrote the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from torch import Tensor

from mmad_bank._files import replacing
from mmad_bank._tensor_files import write_tensors
from mmad_bank.bank._checksum import checksum
from mmad_bank.errors import FormatError, InputError

FORMAT = "mmad-bank"
VERSION = 1

_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # PyTorch writes either, NumPy's .npz is a zip


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


def read(path: str | os.PathLike[str], *, verify: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the memory-mapped tensors of a bank file.

    Args:
        path: the file.
        verify: also compare the tensors with their checksums, which reads the whole file once.

    Raises:
        InputError: There is no such file, or it cannot be read.
        FormatError: Truncated, altered, of a newer version, or no bank file at all; the message says which.
    """
    from safetensors import SafetensorError, safe_open

    _check_layout(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata() or {})
        if verify:
            # A mapping of its own: the pages that verification touches leave the process with it.
            _verify(path, header, _tensors(path))
        tensors = _tensors(path)
    except SafetensorError as error:
        raise FormatError(f"{path}: altered, its table of tensors is not valid ({error})") from error
    if {name: _entry(tensor) for name, tensor in tensors.items()} != {
        name: {key: entry.get(key) for key in ("dtype", "shape")} for name, entry in header["tensors"].items()
    }:
        raise FormatError(f"{path}: altered, its tensors are not those that its header lists")
    return header, tensors


def _check_layout(path: str | os.PathLike[str]) -> None:
    """Tell truncated files, pickles and other foreign files apart by the first bytes and the file's length."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            if start.startswith((_ZIP, _PICKLE)) and start[8:] != b"{":
                raise FormatError(f"{path}: foreign, a pickle or zip file (.pt, .npz); nothing in it was run")
            if start and (len(start) < 9 or length > _LARGEST_HEADER or start[8:] != b"{"):
                raise FormatError(f"{path}: foreign, not a safetensors file and so no bank")
            file.seek(8)
            table = file.read(length)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not start or len(table) < length:
        raise FormatError(f"{path}: truncated within its header, {size} bytes long")
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(table).items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise FormatError(f"{path}: altered, its table of tensors is not valid JSON") from error
    if size != expected:
        which = "truncated" if size < expected else "altered"
        raise FormatError(f"{path}: {which}, expected {expected} bytes, found {size}")


def _header(path: str | os.PathLike[str], metadata: dict[str, str]) -> dict[str, Any]:
    text = metadata.get("mmad_bank")
    if text is None:
        raise FormatError(f"{path}: foreign, a safetensors file that holds no memory bank")
    try:
        header = json.loads(text)
        found, version = header["format"], int(header["version"])
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{path}: altered, its header cannot be read") from error
    if found != FORMAT:
        raise FormatError(f"{path}: foreign, expected the format '{FORMAT}', found {found!r}")
    if version > VERSION:
        raise FormatError(f"{path}: newer, format version {version}; this mmad-bank reads up to {VERSION}: upgrade it")
    if header.pop("checksum", None) != _header_checksum(header):
        raise FormatError(f"{path}: altered, its header does not match its checksum")
    if not isinstance(header.get("tensors"), dict):
        raise FormatError(f"{path}: altered, its header lists no tensors")
    return header


def _verify(path: str | os.PathLike[str], header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if header["tensors"].get(name, {}).get("checksum") != checksum(tensor.numpy()):
            raise FormatError(f"{path}: altered, its '{name}' does not match its checksum")


def _tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def _table(tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {name: {**_entry(tensor), "checksum": checksum(tensor.numpy())} for name, tensor in tensors.items()}


def _entry(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _header_checksum(header: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16).hexdigest()
