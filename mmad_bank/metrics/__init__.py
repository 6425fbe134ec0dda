"""The field's metrics, streaming over images: I-AUROC, P-AUROC and AUPRO at any limit.

Scores are held as float32 in runs, each with a histogram. Both questions that the metrics ask are answered exactly from
runs, so it does not matter whether one lies in memory or, past a limit, in a temporary file: a whole test set at full
size is measured in bounded memory. Which score has a given rank is told by the histograms and by the few scores in the
right bins, without sorting the others; how many scores lie below a value, by sorting the runs, once.
"""

from __future__ import annotations

from mmad_bank.metrics.region_overlap import AUPRO, LIMITS, aupro
from mmad_bank.metrics.roc import AUROC, auroc
from mmad_bank.metrics.score_set import MEMORY
from mmad_bank.metrics.undefined import UndefinedMetricWarning

__all__ = ["AUPRO", "AUROC", "LIMITS", "MEMORY", "UndefinedMetricWarning", "aupro", "auroc"]
