"""Data that are made up: parts with defects in the layout of MVTec 3D-AD, and textures cut from real photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {"write_synthetic": "dataset"}
__all__ = ["write_synthetic"]

if TYPE_CHECKING:
    from mmad_bank.synthetic.dataset import write_synthetic

__getattr__, __dir__ = lazily(__name__, _EXPORTS, submodules=("dataset", "parts", "textures"))
