"""Packages whose submodules load when they are first used, from one table of names."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazily(
    package: str,
    names: Mapping[str, str],
    submodules: Iterable[str] = (),
    moved: Mapping[str, str] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: The package's ``__name__``.
        names: The submodule that has each public name, or the full name of a module elsewhere.
        submodules: The public submodules, found as attributes without having been imported.
        moved: The present full name of each former name, which still works, with a DeprecationWarning.

    Example:
        >>> get, listed = lazily("mmad_bank", {"MemoryBank": "bank"}, ["ops"], {"old": "mmad_bank.ops.knn"})
        >>> listed()
        ['MemoryBank', 'ops']
        >>> get("MemoryBank").__name__
        'MemoryBank'
        >>> get("nothing")
        Traceback (most recent call last):
        AttributeError: module 'mmad_bank' has no attribute 'nothing'
    """
    known, former = set(submodules), moved or {}

    def get(name: str) -> Any:
        if name in names:
            home = names[name] if "." in names[name] else f"{package}.{names[name]}"
            return getattr(importlib.import_module(home), name)
        if name in known:
            return importlib.import_module(f"{package}.{name}")
        if name in former:
            home, _, now = former[name].rpartition(".")
            warnings.warn(f"{package}.{name} is {former[name]} now", DeprecationWarning, stacklevel=2)
            return getattr(importlib.import_module(home), now)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*names, *known})
