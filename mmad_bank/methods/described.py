"""What is said of a prediction in JSON: by files of ``predict`` and by the service, in the same words."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmad_bank.methods.base import Method
    from mmad_bank.methods.prediction import Prediction


def verdict_of(prediction: Prediction) -> dict[str, Any]:
    """Return verdict, p-value, threshold and regions, JSON-able; all None or empty without a calibration."""
    threshold = prediction.threshold
    return {
        "verdict": prediction.verdict,
        "p_value": prediction.p_value,
        "normalized_score": prediction.normalized_score,
        "threshold": None if threshold is None else threshold.score,
        "false_alarm_rate": None if threshold is None else threshold.rate,
        "extrapolated": None if threshold is None else threshold.extrapolated,
        "regions": [asdict(region) for region in prediction.regions],
    }


def explanation_of(method: Method, prediction: Prediction, part: str, n: int) -> dict[str, Any]:
    """Name the normal patches that are nearest to a part's worst patch, JSON-able.

    Args:
        method: The method that made the prediction.
        prediction: The prediction.
        part: One of its parts.
        n: Number of normal patches to name.
    """
    place, grid = prediction.parts[part].worst, prediction.parts[part].grid
    reasons = method.explain(prediction, part, place=place, n=n)
    nearest = [{"sample": one.sample, "place": one.place, "box": one.box, "distance": one.distance} for one in reasons]
    box = prediction.box(part, place)
    return {"worst_patch": place, "grid": list(grid), "box": box, "nearest_normal_patches": nearest}
