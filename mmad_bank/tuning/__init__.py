"""Memory against accuracy against speed: what a smaller bank, another storage or another index costs and saves.

:func:`sweep` measures settings of one bank on test images, :func:`choose` and :func:`recommend` pick one within a
budget, :func:`figure` draws them.

What is compared: the ratio of the coreset changes the scores, and so does an approximate index; the precision of the
exact search's resident copy changes memory and speed alone, and the measured errors show it. One greedy selection
serves all ratios, because its first n picks are the coreset of size n.
"""

from mmad_bank.tuning.drawing import check_drawing, figure
from mmad_bank.tuning.measuring import Sweep
from mmad_bank.tuning.plan import PRECISIONS, RATIOS, faiss_indices, order_of_ratios
from mmad_bank.tuning.settings import By, Measured, Setting, nearest, non_dominated, pareto, recommend
from mmad_bank.tuning.sweeping import sweep
from mmad_bank.tuning.uncertainty import AUROCs, Choice, choose

__all__ = [
    "PRECISIONS", "RATIOS", "AUROCs", "By", "Choice", "Measured", "Setting", "Sweep", "check_drawing", "choose",
    "faiss_indices", "figure", "nearest", "non_dominated", "order_of_ratios", "pareto", "recommend", "sweep",
]  # fmt: skip
