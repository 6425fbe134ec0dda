"""CFM (Costanzino et al. 2024): the method, and the mappings between the modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {
    "CFM": "method",
    "CrossmodalMapping": "mappings",
    "aggregate": "method",
    "discrepancies": "mappings",
    "train_mappings": "mappings",
}
__all__ = [
    "CFM",
    "CrossmodalMapping",
    "aggregate",
    "discrepancies",
    "train_mappings",
]

if TYPE_CHECKING:
    from mmad_bank.methods.cfm.mappings import CrossmodalMapping, discrepancies, train_mappings
    from mmad_bank.methods.cfm.method import CFM, aggregate

__getattr__, __dir__ = lazily(__name__, _EXPORTS, submodules=("mappings", "method"))
