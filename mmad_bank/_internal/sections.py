"""The names of the sections that the time of an image is split into, see :func:`mmad_bank._internal.timing.timed`.

Methods time them, evaluation and benchmarks report them, and charts give each its colour.
"""

from __future__ import annotations

READING = "reading"
PREPROCESSING = "preprocessing"
ADAPTATION = "feature adaptation"
FUSION = "feature fusion"
MAPPINGS = "mappings"
SEARCH = "bank search and scores"
DECISION = "decision and map"
STUDENT = "student and teacher"
DISTANCES = "signed distances"
ALIGNMENT = "alignment and map"
OTHER = "other"
"""What belongs to none."""


def features_of(modality: str) -> str:
    """Return the section in which a modality's features are extracted.

    Example:
        >>> features_of("rgb")
        'rgb features'
    """
    return f"{modality} features"
