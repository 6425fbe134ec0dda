"""Adaptors: this project's selection and search in the shapes that other programs expect.

Importing the package is light: an adaptor loads when it is first used, and with it the library that it is for, if it
needs that at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_SUBMODULES = ("anomalib", "faiss", "patchcore_inspection", "sklearn")
__all__ = ["anomalib", "faiss", "patchcore_inspection", "sklearn"]

if TYPE_CHECKING:
    from mmad_bank.integrations import anomalib, faiss, patchcore_inspection, sklearn

__getattr__, __dir__ = lazily(__name__, {}, submodules=_SUBMODULES)
