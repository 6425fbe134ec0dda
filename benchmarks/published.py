"""Figures as published, each once, with the paper it stands in: nothing here was measured by these benchmarks.

A figure that is not at hand is None or missing; none is estimated. They are means over a data set's ten categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmad_bank.evaluation import FUSED

SOURCES = {
    "M3DM's paper": "Y. Wang et al., Multimodal Industrial Anomaly Detection via Hybrid Fusion, CVPR 2023",
    "CFM's paper": "A. Costanzino et al., Multimodal Industrial Anomaly Detection by Crossmodal Feature Mapping,"
    " CVPR 2024",
    "LSFA's paper": "Y. Tu et al., Self-supervised Feature Adaptation for 3D Industrial Anomaly Detection, ECCV 2024",
    "MDSS's paper": "Z. Sun et al., Memoryless Multimodal Anomaly Detection via Student-Teacher Network and Signed"
    " Distance Learning, 2024",
}  # fmt: skip
"""Papers by the name that a figure gives for its source."""


@dataclass(frozen=True)
class Accuracy:
    """Means of a method over the categories of a data set.

    Attributes:
        method: Its name.
        source: One of :data:`SOURCES`, with what else a reader must know.
        image_auroc: I-AUROC.
        pixel_auroc: P-AUROC.
        aupro: AUPRO by limit.
        result: ``"fused"``, or the bank that was used alone.
        shots: Training images of a few-shot run; None for all.
    """

    method: str
    source: str
    image_auroc: float
    pixel_auroc: float | None = None
    aupro: Mapping[float, float] = field(default_factory=dict)
    result: str = FUSED
    shots: int | None = None


def _cfm(method: str, image: float, pixel: float, aupro: float, strict: float, note: str = "") -> Accuracy:
    return Accuracy(method, "CFM's paper" + note, image, pixel, {0.3: aupro, 0.01: strict})


_FEW_SHOT = {
    ("M3DM", "M3DM's paper"): (0.796, 0.821, 0.903),
    ("M3DM", "CFM's paper, rerun"): (0.822, 0.845, 0.907),
    ("CFM", "CFM's paper"): (0.811, 0.845, 0.906),
    ("LSFA", "LSFA's paper"): (0.834, 0.871, 0.926),
}
ACCURACY: dict[str, list[Accuracy]] = {
    "mvtec3d": [
        _cfm("BTF", 0.865, 0.992, 0.959, 0.383),
        _cfm("AST", 0.937, 0.976, 0.944, 0.398),
        _cfm("M3DM", 0.945, 0.992, 0.964, 0.394),
        Accuracy("M3DM", "M3DM's paper", 0.874, 0.970, {0.3: 0.906}, result="xyz"),
        Accuracy("M3DM", "M3DM's paper", 0.850, 0.987, {0.3: 0.942}, result="rgb"),
        _cfm("CFM", 0.954, 0.993, 0.971, 0.455),
        _cfm("CFM-M", 0.960, 0.994, 0.972, 0.459),
        _cfm("CFM-S", 0.948, 0.994, 0.972, 0.451),
        _cfm("CFM-T", 0.899, 0.990, 0.961, 0.419),
        Accuracy("MDSS", "MDSS's paper", 0.956, None, {0.3: 0.972}),
        Accuracy("LSFA", "LSFA's paper", 0.971, 0.993, {0.3: 0.968}),
        *(
            Accuracy(method, source, value, shots=shots)
            for (method, source), values in _FEW_SHOT.items()
            for shots, value in zip((5, 10, 50), values, strict=True)
        ),
    ],
    "eyecandies": [
        Accuracy("M3DM", "M3DM's paper", 0.897, 0.977, {0.3: 0.882}),
        _cfm("M3DM", 0.882, 0.977, 0.887, 0.331, ", retrained"),
        _cfm("CFM", 0.881, 0.974, 0.887, 0.335),
        Accuracy("LSFA", "LSFA's paper", 0.906),
    ],
}
"""Published accuracies, by layout of the data set."""

SPEED_SOURCE = "CFM's paper (CVPR 2024), table 5: one RTX 4090. Accuracy on MVTec 3D-AD, as published"
SPEED = {
    "BTF": (3.197, 381.06), "AST": (4.966, 463.94), "M3DM": (0.514, 6526.12), "CFM": (21.755, 437.91),
    "CFM-M": (24.146, 295.81), "CFM-S": (24.527, 211.09), "CFM-T": (42.818, 48.12),
}  # fmt: skip
"""Frames per second and megabytes (parameters, activations, banks) by method."""


def accuracy_of(layout: str, method: str, result: str = FUSED, shots: int | None = None) -> list[Accuracy]:
    """Return what is published of a method's result on a data set: none, one or several papers' figures.

    Example:
        >>> [one.image_auroc for one in accuracy_of("mvtec3d", "CFM")]
        [0.954]
    """
    wanted = method, result, shots
    return [one for one in ACCURACY.get(layout, []) if (one.method, one.result, one.shots) == wanted]
