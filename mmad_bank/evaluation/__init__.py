"""Evaluation of a method on a test split: the field's metrics, in bounded memory, and what a report needs.

Every image is scored, measured and let go. Its scores, the sorted scores of its pixels (see :mod:`mmad_bank.metrics`)
and the few predictions that are to be shown are kept.
"""

from mmad_bank.evaluation._words import word
from mmad_bank.evaluation.decisions import Decisions
from mmad_bank.evaluation.parts import PartScore, PartScores
from mmad_bank.evaluation.results import (
    HIGHEST_DEFECT,
    HIGHEST_GOOD,
    LOWEST_DEFECT,
    LOWEST_GOOD,
    RESULT,
    ROLES,
    Curve,
    Evaluation,
    Example,
    Metrics,
    SampleScore,
    Summary,
)
from mmad_bank.evaluation.running import evaluate
from mmad_bank.methods.verdicts import FUSED

__all__ = [
    "FUSED", "HIGHEST_DEFECT", "HIGHEST_GOOD", "LOWEST_DEFECT", "LOWEST_GOOD", "RESULT", "ROLES", "Curve", "Decisions",
    "Evaluation", "Example", "Metrics", "PartScore", "PartScores", "SampleScore", "Summary", "evaluate", "share",
    "word",
]  # fmt: skip
