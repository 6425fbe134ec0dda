"""End-to-end inference of the methods at the papers' sizes: speed, time by stage, memory.

From prepared arrays in memory to image score and map, as CFM's paper measures (table 5): warm-up left out, GPUs waited
for, training-only steps not counted. Weights are random: neither speed nor memory depends on their values. Banks are
exact coresets of real features of those random networks, of the sizes that the papers' runs had (:func:`bank_sizes`).
"""

from mmad_bank.bench.banks import bank_sizes, banks_of, fit_method, images_of, make_method
from mmad_bank.bench.contestants import (
    CATEGORY,
    IMAGES,
    QUICK_VECTORS,
    SIZES,
    SMALL_VECTORS,
    UNTRAINED,
    find_methods,
    new_method,
    samples_for,
    samples_of,
)
from mmad_bank.bench.measuring import Inference, measure, measure_memory, score_once

__all__ = [
    "CATEGORY",
    "IMAGES",
    "QUICK_VECTORS",
    "SIZES",
    "SMALL_VECTORS",
    "UNTRAINED",
    "Inference",
    "bank_sizes",
    "banks_of",
    "find_methods",
    "fit_method",
    "images_of",
    "make_method",
    "measure",
    "measure_memory",
    "new_method",
    "samples_for",
    "samples_of",
    "score_once",
]
