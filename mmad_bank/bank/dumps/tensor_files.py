"""What ``.safetensors`` and ``.pt`` files hold, memory-mapped; nothing pickled in them is run."""

from __future__ import annotations

import json
import pickle
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmad_bank._internal.checks import FLOATS
from mmad_bank._internal.files import state_of
from mmad_bank._internal.state_dicts import check_restricted_loading
from mmad_bank.bank.dumps.stored import (
    FILES_OPEN,
    NAME_KEYS,
    Contents,
    Entry,
    Stored,
    check_names,
    in_memory,
    name_of,
    values_of,
)
from mmad_bank.errors import InputError

_DEEPEST = 4  # dictionaries in dictionaries
_MAPPED_BYTES = 32 << 20  # read of a mapped file, until it is mapped anew: pages that were read go with the old mapping


class _Mapped:
    """The tensors of a mapped file; it is mapped anew from time to time, so that pages read before do not pile up."""

    def __init__(self, load: Callable[[], Callable[[str], Tensor]]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._get: Callable[[str], Tensor] | None = None
        self._read = 0

    def values(self, key: str, first: int, count: int) -> Tensor:
        """Return a copy of a run of a tensor's values."""
        with self._lock:
            if self._get is None or self._read > _MAPPED_BYTES:
                self._get, self._read = self._load(), 0
            found = values_of(self._get(key), first, count)
            assert isinstance(found, Tensor)
            self._read += found.nbytes
            return found.clone()


@lru_cache(maxsize=FILES_OPEN)
def _mapped_safetensors(path: Path, state: tuple[int, ...]) -> _Mapped:
    from safetensors import safe_open

    return _Mapped(lambda: safe_open(path, framework="pt").get_tensor)


@lru_cache(maxsize=FILES_OPEN)
def _mapped_torch(path: Path, state: tuple[int, ...]) -> _Mapped:
    return _Mapped(lambda: _flatten(_load_torch(path, mmap=True)).__getitem__)


def _tensor_entry(tensor: Tensor) -> Entry:
    return Entry(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.dtype in FLOATS)


def look_into_safetensors(path: Path) -> Contents:
    """Return what a ``.safetensors`` file holds: its tensors by key, and the images' names if it tells them."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        keys, metadata = list(file.keys()), file.metadata() or {}
        entries = {key: _tensor_entry(file.get_tensor(key)) for key in keys}
    told = next((key for key in NAME_KEYS if key in metadata), None)
    names = None if told is None else check_names(path, told, _parse_list(metadata[told]))

    def open_array(key: str) -> Stored:
        name, entry = name_of(path, key, len(entries)), entries[key]
        _check_dtype(name, entry)
        return Stored(name, entry.shape, partial(_mapped_values, _mapped_safetensors, path, key))

    return Contents(path, entries, open_array, names)


def _parse_list(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _load_torch(path: Path, *, mmap: bool) -> Any:
    check_restricted_loading(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's remarks on pickle protocols; a refusal says enough
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _flatten(value: Any) -> dict[str, Any]:
    """Return what a .pt file holds by key: dictionaries in dictionaries get keys with a dot, lists are counted."""
    if isinstance(value, Tensor):
        return {"": value}
    if isinstance(value, (list, tuple)):
        return {str(number): item for number, item in enumerate(value)}
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        prefix, inside, depth = waiting.pop()
        for key, item in inside.items():
            if isinstance(item, Mapping) and depth < _DEEPEST:
                waiting.append((f"{prefix}{key}.", item, depth + 1))
            else:
                found[f"{prefix}{key}"] = item
    return found


def look_into_torch(path: Path) -> Contents:
    """Return what a ``.pt`` file holds: a tensor, a list or a dictionary of them, and the images' names."""
    is_zip = zipfile.is_zipfile(path)  # the old torch.save format cannot be mapped
    try:
        value = _load_torch(path, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds pickled Python objects or is damaged; expected plain tensors (pickled code is never run)"
        ) from error
    if not isinstance(value, (Tensor, Mapping, list, tuple)):
        raise InputError(f"{path}: expected a tensor, found {type(value).__name__}")
    found = _flatten(value)
    tensors = {key: item for key, item in found.items() if isinstance(item, Tensor)}
    if isinstance(value, (list, tuple)) and len(tensors) < len(found):
        other = next(item for item in found.values() if not isinstance(item, Tensor))
        raise InputError(f"{path}: expected a list of tensors, found {type(other).__name__} in it")
    told = next((key for key in NAME_KEYS if isinstance(found.get(key), (list, tuple))), None)
    names = None if told is None else check_names(path, told, found[told])
    entries = {key: _tensor_entry(tensor) for key, tensor in tensors.items()}
    problems = {key: _problem_of(tensor, path.stat().st_size) for key, tensor in tensors.items()}
    resident = {} if is_zip else tensors

    def open_array(key: str) -> Stored:
        name, entry = name_of(path, key, len(entries)), entries[key]
        if problems[key] is not None:
            raise InputError(f"{name}: {problems[key]}")
        _check_dtype(name, entry)
        if key in resident:
            return in_memory(name, resident[key].detach())
        return Stored(name, entry.shape, partial(_mapped_values, _mapped_torch, path, key))

    kind = "array" if isinstance(value, Tensor) else "dictionary" if isinstance(value, Mapping) else "list"
    return Contents(path, entries, open_array, names, kind)


def _problem_of(tensor: Tensor, n_bytes: int) -> str | None:
    """Say why a tensor of a file of ``n_bytes`` is no plain array."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        return f"expected a dense tensor, found {str(tensor.layout).removeprefix('torch.')}"
    if tensor.numel() * tensor.element_size() > n_bytes:
        return (
            f"truncated or altered, or a view that repeats its values: shape {tuple(tensor.shape)} of {tensor.dtype} in"
            f" a file of {n_bytes} bytes"
        )
    return None


def _mapped_values(mapped: Callable[..., _Mapped], path: Path, key: str, first: int, count: int) -> Tensor:
    return mapped(path, state_of(path)).values(key, first, count)


def _check_dtype(name: str, entry: Entry) -> None:
    if not entry.is_float:
        raise InputError(f"{name}: expected floating-point values, found {entry.dtype}")
