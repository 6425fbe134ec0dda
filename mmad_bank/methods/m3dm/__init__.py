"""M3DM (Wang et al. 2023): the method, and its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {"BANKS": "options", "M3DM": "method"}
__all__ = ["BANKS", "M3DM"]

if TYPE_CHECKING:
    from mmad_bank.methods.m3dm.method import M3DM
    from mmad_bank.methods.m3dm.options import BANKS

__getattr__, __dir__ = lazily(__name__, _EXPORTS, submodules=("method", "options"))
