"""Shape-guided (Chu et al. 2023): the method, its two linked banks, and the reconstruction of vectors from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {"DualMemory": "memory", "ShapeGuided": "method", "reconstruct": "sparse_coding"}
__all__ = ["DualMemory", "ShapeGuided", "reconstruct"]

if TYPE_CHECKING:
    from mmad_bank.methods.shape_guided.memory import DualMemory
    from mmad_bank.methods.shape_guided.method import ShapeGuided
    from mmad_bank.methods.shape_guided.sparse_coding import reconstruct

__getattr__, __dir__ = lazily(__name__, _EXPORTS, submodules=("cells", "memory", "method", "sparse_coding"))
