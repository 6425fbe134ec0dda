"""Saved methods as the service sees them: pictures and point clouds in, scores, maps and verdicts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmad_bank.errors import InputError
from mmad_bank.serving.models import RATE, RULE_PARAMETERS, Answer, Card, TensorInfo, Work, check_spelling, rate_of

if TYPE_CHECKING:
    from mmad_bank.data import Sample
    from mmad_bank.methods import Method, Prediction

_KINDS = {"rgb": ("UINT8", (np.uint8, np.uint16, np.float32)), "xyz": ("FP32", (np.float32, np.float64))}


class Explained(NamedTuple):
    """A prediction of files, the method that made it, and the normal patches that explain it, by part, JSON-able."""

    prediction: Prediction
    method: Method
    explanation: dict[str, Any]


class ServedMethod:
    """A fitted method.

    Args:
        method: The method.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        _warm_up(method)  # now, so that the first request does not wait for it
        self.card = _card_of(method)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return int(getattr(self.method, "nbytes", 0))

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Score the samples of several requests together."""
        options = works[0].options
        samples = [sample for work in works for sample in _samples_of(work)]
        found = self.method.predict_batch(samples, force=bool(options.get("force")))
        if options.get("rate") is not None:
            judged = self.method.with_arguments(false_alarm_rate=options["rate"])
            found = [_at_rate(one, judged) for one in found]
        answers, first = [], 0
        for work in works:
            own = found[first : first + work.size]
            answers.append(self._explained(own[0], work.options["explain"]) if "" in work.inputs else _answer(own))
            first += work.size
        return answers

    def _explained(self, prediction: Prediction, n: int) -> Answer:
        """Return a prediction of files as it is, with the normal patches that explain it: that takes the networks."""
        from mmad_bank.methods.described import explanation_of

        explanation = {part: explanation_of(self.method, prediction, part, n) for part in prediction.parts} if n else {}
        verdicts = [] if prediction.verdict is None else [prediction.verdict]
        return Answer({}, {}, verdicts, Explained(prediction, self.method, explanation))


def _warm_up(method: Any) -> None:
    """Let the networks be compiled that a runtime compiles."""
    for network in getattr(getattr(method, "extractors_", None), "networks", {}).values():
        if hasattr(network, "warm_up"):
            network.warm_up(method.image_size)


def _at_rate(prediction: Prediction, judged: Method) -> Prediction:
    from dataclasses import replace

    return replace(prediction, calibration=judged.calibration_, false_alarm_rate=judged.false_alarm_rate)


def _answer(predictions: Sequence[Prediction]) -> Answer:
    verdicts = [one.verdict for one in predictions if one.verdict is not None]
    outputs: dict[str, np.ndarray] = {
        "scores": np.array([one.score for one in predictions], np.float64),
        "maps": np.stack([one.map.numpy() for one in predictions]),
    }
    threshold = predictions[0].threshold
    if threshold is None:
        return Answer(outputs)
    outputs["p_values"] = np.array([one.p_value for one in predictions], np.float64)
    outputs["verdicts"] = np.array(verdicts, object)
    parameters = {
        "threshold": threshold.score, "false_alarm_rate": threshold.rate, "extrapolated": threshold.extrapolated,
    }  # fmt: skip
    return Answer(outputs, parameters, verdicts)


def _card_of(method: Method) -> Card:
    needed = modalities_needed(method)
    inputs = tuple(
        TensorInfo(name, kind, (-1, -1, -1, 3), optional=name not in needed)
        for name, (kind, _) in _KINDS.items()
        if name in needed or name in method.modalities or name == "rgb"
    )
    outputs = [TensorInfo("scores", "FP64", (-1,)), TensorInfo("maps", "FP32", (-1, -1, -1))]
    if method.calibration_ is not None:
        outputs += [TensorInfo("p_values", "FP64", (-1,)), TensorInfo("verdicts", "BYTES", (-1,))]
    scale = method.map_scale_
    facts: dict[str, Any] = {
        "method": method.name, "categories": list(method.categories_), "calibrated": method.calibration_ is not None,
        "least_rate": None if method.calibration_ is None else method.calibration_.own.least_rate,
        "needs": sorted(needed), "map_scale": None if scale is None else list(scale.limits()),
    }  # fmt: skip
    return Card(f"mmad-bank_{method.name}", inputs, tuple(outputs), facts)


def modalities_needed(method: Method) -> frozenset[str]:
    """Return what a sample must have: the modalities that a method looks at, and the cloud if its recipe needs it."""
    recipe = method.preprocessing_
    by_cloud = recipe is not None and (recipe.background != "keep" or recipe.eps is not None)
    return frozenset(method.modalities | ({"xyz"} if by_cloud else set()))


def method_work(card: Card, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any]) -> Work:
    """Return what a method is to compute for a request with tensors.

    Args:
        card: The method's card.
        inputs: Tensors of the request: ``rgb`` (B, H, W, 3) or (H, W, 3), ``xyz`` likewise, in meters.
        parameters: Its parameters: ``false_alarm_rate`` counts.

    Raises:
        InputError: The tensors are of another shape or type.
    """
    arrays = {name: _images(name, values) for name, values in inputs.items()}
    if not arrays:
        raise InputError(f"inputs: expected {' or '.join(one.name for one in card.inputs)}, found none")
    sizes = {values.shape[:3] for values in arrays.values()}
    if len(sizes) > 1:
        raise InputError(f"inputs: expected rgb and xyz of one size, found {' and '.join(map(str, sorted(sizes)))}")
    check_spelling(parameters, (RATE,))
    for name in RULE_PARAMETERS:
        if name in parameters:
            raise InputError(f"parameters: expected {RATE}, found {name}, which is for banks: a method has its rule")
    rate = rate_of(parameters)
    return Work(arrays, ("tensors", rate), next(iter(sizes))[0], {"rate": rate})


def _images(name: str, values: np.ndarray) -> np.ndarray:
    images = values[None] if values.ndim == 3 else values
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise InputError(
            f"inputs: {name}: expected shape [B, H, W, 3] or [H, W, 3], not empty, found {list(values.shape)}"
        )
    kinds = _KINDS[name][1]
    if images.dtype not in kinds:
        words = " or ".join(np.dtype(kind).name for kind in kinds)
        raise InputError(f"inputs: {name}: expected {words}, found {images.dtype.name}")
    return images


def _samples_of(work: Work) -> list[Any]:
    """Return the samples of a request."""
    if "" in work.inputs:
        return [work.inputs[""]]
    rgb, xyz = work.inputs.get("rgb"), work.inputs.get("xyz")
    return [sample_of(None if rgb is None else rgb[i], None if xyz is None else xyz[i]) for i in range(work.size)]


def sample_of(rgb: np.ndarray | None, xyz: np.ndarray | None) -> Sample:
    """Return the sample of a picture (H, W, 3) and an organized cloud (H, W, 3), one of which may be missing.

    Example:
        >>> sample_of(np.zeros((4, 6, 3), np.uint8), None).modalities
        frozenset({'rgb'})
    """
    import torch

    from mmad_bank.data import Sample
    from mmad_bank.data.relief import relief

    given = frozenset(name for name, one in (("rgb", rgb), ("xyz", xyz)) if one is not None)
    size = (rgb if rgb is not None else xyz).shape[:2]  # type: ignore[union-attr]
    if xyz is not None and not (np.isfinite(xyz).all(axis=-1) & (xyz != 0).all(axis=-1)).any():
        raise InputError("inputs: xyz: expected measured points, found none")
    picture = relief(np.nan_to_num(xyz, posinf=0, neginf=0)) if rgb is None and xyz is not None else rgb
    assert picture is not None
    no_cloud = torch.ones(1).expand(3, *size)  # one number for all: it may wait for long
    xyz_planes = no_cloud if xyz is None else torch.from_numpy(xyz.transpose(2, 0, 1).copy())
    return Sample(torch.from_numpy(picture.transpose(2, 0, 1).copy()), xyz_planes, None, modalities=given)
