"""Arrays where they lie, in files or in memory: what a file holds, and any run of an array's values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmad_bank._internal.checks import ArrayLike, as_float_tensor
from mmad_bank.errors import InputError

NAME_KEYS = ("names", "ids")
"""Under one of these a file that holds several things may name its images."""
FILES_OPEN = 16
"""So many files stay open."""

_LISTED = 8


@dataclass(frozen=True)
class Stored:
    """An array in a file or in memory."""

    name: str
    """Name for messages: the file, and the key behind it if the file holds several arrays."""
    shape: tuple[int, ...]
    values: Callable[[int, int], ArrayLike]
    """(first value, number of values), counted row by row, to a 1-D array of the array's own dtype."""
    resident: bool = False
    """The values are in memory already, and are handed out without a copy."""
    in_memory: bool = False
    """The values are in this process's memory, in whatever order: no other process can read them anew."""


@dataclass(frozen=True)
class Entry:
    """What is known of an array before it is opened."""

    shape: tuple[int, ...]
    dtype: str
    is_float: bool

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    path: Path | str
    """The file, or its address."""
    entries: dict[str, Entry]
    open: Callable[[str], Stored]
    names: tuple[str, ...] | None = None
    """Names of the images, if the file tells them."""
    kind: str = "dictionary"
    """``"array"`` (its key is the empty word), ``"list"`` of arrays (their keys count them), or ``"dictionary"``."""

    def listing(self) -> str:
        """List the arrays with their dtypes and shapes in words, the first few if there are many."""
        words = [f"{key} {entry}" for key, entry in list(self.entries.items())[:_LISTED]]
        more = len(self.entries) - len(words)
        return ", ".join(words) + (f" and {more} more" if more else "") or "none"

    def features(self) -> list[str]:
        """Return the keys that may be features: floating-point arrays of at least two dimensions."""
        return [key for key, entry in self.entries.items() if entry.is_float and len(entry.shape) > 1]


def in_memory(name: str, array: ArrayLike) -> Stored:
    """Return an array that is in memory as one that is stored."""
    as_float_tensor(array[:0], name, ndim=tuple(range(1, array.ndim + 1)))  # says at once if the dtype is wrong
    return Stored(name, tuple(map(int, array.shape)), partial(values_of, array), is_contiguous(array), True)


def joined(name: str, arrays: list[Stored]) -> Stored:
    """Put arrays of one shape behind one another as the images of one array: n of (P, D) are one (n, P, D)."""
    shape = arrays[0].shape
    each = math.prod(shape)

    def values(first: int, count: int) -> ArrayLike:
        found, end = [], first + count
        for number in range(first // each, -(-end // each)):
            start, stop = max(first - number * each, 0), min(end - number * each, each)
            found.append(as_float_tensor(arrays[number].values(start, stop - start), arrays[number].name, ndim=1))
        return torch.cat(found)

    return Stored(name, (len(arrays), *shape), values, in_memory=any(array.in_memory for array in arrays))


def is_contiguous(array: ArrayLike) -> bool:
    """Tell whether an array's values lie row by row."""
    return array.is_contiguous() if isinstance(array, Tensor) else bool(array.flags.c_contiguous)


def values_of(array: ArrayLike, first: int, count: int) -> ArrayLike:
    """Return a run of an array's values; of one that lies otherwise in memory no more than the items it touches."""
    if is_contiguous(array):
        return array.reshape(-1)[first : first + count]
    width = math.prod(array.shape[1:])
    low, high = first // width, -(-(first + count) // width)
    return array[low:high].reshape(-1)[first - low * width :][:count]


def name_of(path: Path, key: str, n_arrays: int) -> str:
    """Name one of a file's arrays for messages."""
    return str(path) if n_arrays == 1 else f"{path}, {key}"


def check_names(path: Path, key: str, names: Any) -> tuple[str, ...]:
    """Return the images' names that a file tells, or say what is there instead."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: expected its {key} to be a list of text, found something else")
    return tuple(names)
