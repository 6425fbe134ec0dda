"""A method's way from the scores of its parts to its own score, map and verdict, in words and numbers of the manifest.

Every decision over banks but one is a sum with weights: DLF's linear one-class SVMs as well as a sum or an average. The
other is that on the scale of held-out images, whose image score is a power mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_bank.fusion.calibrated import POWER, CalibratedFusion
from mmad_bank.methods import CFM, LSFA, M3DM, MDSS, Method
from mmad_bank.methods.bank_method import BankMethod
from mmad_bank.methods.cfm.box_filters import BOXES

WEIGHTED_SUM, POWER_MEAN, LARGEST = "weighted_sum", "power_mean", "largest"
"""Rules that put scores of parts together, beside products and maxima; the last is that of a map."""
_MEANS = {"aupro": "mean_of_positive", "p_auroc": "root_of_mean"}


def decision_of(method: Method) -> dict[str, Any]:
    """Say how a fitted method decides, JSON-able.

    Args:
        method: A fitted method.

    Returns:
        ``name`` of the decision; ``parts``, the banks or modalities that it is over, in its order; ``part_scores``,
        whether a part's image score is that of its bank (``"bank"``) or the largest of its map (``"map"``); the rules
        of the ``image`` score and of the ``map``, with their numbers; and ``verdict``, the image score above which a
        picture is bad, None without a calibration. docs/how-to/export.md says what each rule is.
    """
    if isinstance(method, BankMethod):
        rules = _of_banks(method)
    else:
        rules = _of_branches(method) if isinstance(method, MDSS) else _of_mappings(method)
    size = [method.image_size, method.image_size]
    rules["map"] |= {"size": size, "smoothing": _smoothing_of(method)}
    return {**rules, "verdict": _verdict_of(method)}


def _of_banks(method: BankMethod) -> dict[str, Any]:
    parts = list(method.banks_)
    scale, n = method.calibrated_, len(parts)
    if n > 1 and getattr(method, "decision", "") == "calibrated":
        assert scale is not None
        return _on_one_scale(scale, parts, "bank")
    name, images, places = "single", dict.fromkeys(parts, 1.0), dict.fromkeys(parts, 1.0)
    if isinstance(method, LSFA):
        name, images, places = "average", dict.fromkeys(parts, 1 / n), dict.fromkeys(parts, 1 / n)
    elif isinstance(method, M3DM) and method.dlf_ is not None:
        name, (images, places) = "dlf", (_weights_of(method, rule) for rule in ("images", "pixels"))
    elif n > 1:
        name = "sum"
    return {
        "name": name, "parts": parts, "part_scores": "bank",
        "image": {"rule": WEIGHTED_SUM, "weights": images}, "map": {"rule": WEIGHTED_SUM, "weights": places},
    }  # fmt: skip


def _weights_of(method: M3DM, rule: str) -> dict[str, float]:
    """Return what DLF multiplies each bank's scores with: its factor, and then the weight of the one-class SVM."""
    assert method.dlf_ is not None
    factors, weights = method.dlf_.factors, method.dlf_.weights_[rule].tolist()
    return {name: factor * weight for (name, factor), weight in zip(factors.items(), weights, strict=True)}


def _on_one_scale(scale: CalibratedFusion, parts: list[str], part_scores: str) -> dict[str, Any]:
    return {
        "name": "calibrated", "parts": parts, "part_scores": part_scores,
        "image": {"rule": POWER_MEAN, "power": POWER, "units": {name: scale.images[name] for name in parts}},
        "map": {"rule": WEIGHTED_SUM, "weights": {name: 1 / scale.pixels[name] / len(parts) for name in parts}},
    }  # fmt: skip


def _of_mappings(method: Method) -> dict[str, Any]:
    assert isinstance(method, CFM)
    parts = list(method.mappings_)
    if method.decision == "calibrated":
        assert method.calibrated_ is not None
        return _on_one_scale(method.calibrated_, parts, "map")
    score, whole = None, None
    if method.reading("divide_by_means"):
        score, whole = "root_of_mean_of_positive", _MEANS[method.normalize_for]
    return {
        "name": method.aggregation, "parts": parts, "part_scores": "map",
        "image": {"rule": LARGEST, "divided_by": score},
        "map": {**_aggregation(method.aggregation, parts), "divided_by": whole},
    }  # fmt: skip


def _aggregation(aggregation: str, parts: list[str]) -> dict[str, Any]:
    """Return the rule of places: a product or the largest, or what can be said as a sum with weights."""
    if aggregation in ("product", "max"):
        return {"rule": aggregation}
    return {"rule": WEIGHTED_SUM, "weights": {name: float(aggregation in ("sum", name)) for name in parts}}


def _of_branches(method: MDSS) -> dict[str, Any]:
    parts = list(method.branches)
    alignment = method.alignment_
    if alignment is None:
        return {
            "name": "single", "parts": parts, "part_scores": "map", "image": {"rule": LARGEST, "divided_by": None},
            "map": {"rule": WEIGHTED_SUM, "weights": {parts[0]: 1.0}, "divided_by": None},
        }  # fmt: skip
    if method.decision == "calibrated":
        assert method.calibrated_ is not None
        return _on_one_scale(method.calibrated_, parts, "map")
    scale = alignment.xyz_std / alignment.rgb_std
    return {
        "name": "align", "parts": parts, "part_scores": "map", "image": {"rule": "product"},
        "map": {
            "rule": "max_of_maps", "scales": {"rgb": scale, "xyz": 1.0},
            "offsets": {"rgb": alignment.xyz_mean - alignment.rgb_mean * scale, "xyz": 0.0},
        },
    }  # fmt: skip


def _smoothing_of(method: Any) -> dict[str, Any]:
    if isinstance(method, CFM) and method.reading("smoothing") == "boxes":
        return {"kind": "boxes", "boxes": [{"width": width, "times": times} for width, times in BOXES]}
    gaussian = {"kind": "gaussian", "sigma": float(method.sigma)}
    if not isinstance(method, MDSS):
        return gaussian
    own = {"rgb": {"kind": "gaussian", "sigma": 0.0}, "xyz": gaussian}
    return {"kind": "by_part", "parts": {name: own[name] for name in method.branches}}


def _verdict_of(method: Method) -> Mapping[str, Any] | None:
    calibration = method.calibration_
    if calibration is None:
        return None
    threshold = calibration.own.threshold(method.false_alarm_rate)
    peak = calibration.peaks.threshold(method.false_alarm_rate)
    return {
        "false_alarm_rate": threshold.rate, "bad_above": threshold.score, "extrapolated": threshold.extrapolated,
        "region_above": peak.score,
    }  # fmt: skip
