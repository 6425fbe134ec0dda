"""MDSS (Sun et al. 2024): the method, its student and teacher, signed distances, and the alignment of scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {
    "MDSS": "method",
    "PDN": "pdn",
    "ScoreAlignment": "score_alignment",
    "SignedDistance": "signed_distance",
    "train_signed_distance": "pulling",
}
__all__ = [
    "MDSS",
    "PDN",
    "ScoreAlignment",
    "SignedDistance",
    "train_signed_distance",
]

if TYPE_CHECKING:
    from mmad_bank.methods.mdss.method import MDSS
    from mmad_bank.methods.mdss.pdn import PDN
    from mmad_bank.methods.mdss.pulling import train_signed_distance
    from mmad_bank.methods.mdss.score_alignment import ScoreAlignment
    from mmad_bank.methods.mdss.signed_distance import SignedDistance

_SUBMODULES = (
    "method", "pdn", "photographs", "point_patches", "pulling", "score_alignment", "signed_distance", "student_teacher",
    "training_data",
)  # fmt: skip
__getattr__, __dir__ = lazily(__name__, _EXPORTS, submodules=_SUBMODULES)
