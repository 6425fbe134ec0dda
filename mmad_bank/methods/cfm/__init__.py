"""CFM (Costanzino et al. 2024): the method, and the mappings between the modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {
    "CFM": "method",
    "CrossmodalMapping": "mappings",
    "PixelFeatures": "pixel_features",
    "aggregate": "method",
    "discrepancies": "comparison",
    "train_mappings": "training",
}
__all__ = [
    "CFM",
    "CrossmodalMapping",
    "PixelFeatures",
    "aggregate",
    "discrepancies",
    "train_mappings",
]

if TYPE_CHECKING:
    from mmad_bank.methods.cfm.comparison import discrepancies
    from mmad_bank.methods.cfm.mappings import CrossmodalMapping
    from mmad_bank.methods.cfm.method import CFM, aggregate
    from mmad_bank.methods.cfm.pixel_features import PixelFeatures
    from mmad_bank.methods.cfm.training import train_mappings

_SUBMODULES = ("comparison", "mappings", "method", "pixel_features", "training")
__getattr__, __dir__ = lazily(__name__, _EXPORTS, submodules=_SUBMODULES)
