"""Which normal images a model is calibrated on, and the calibration of any method by its predictions of them.

Methods with banks have a faster way (:mod:`mmad_bank.methods.held_out`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmad_bank._internal.progress import within
from mmad_bank._internal.resume import Stages
from mmad_bank.calibration import numbers_of
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import Samples
from mmad_bank.errors import InputError, MmadBankError
from mmad_bank.fusion import CalibratedFusion, PartScales
from mmad_bank.methods.copies import folds_of_marks, marks_of, one_fold
from mmad_bank.methods.options import CalibratedOn
from mmad_bank.methods.parts import IMAGES, PARTS, FitParts, judged_together, some_of
from mmad_bank.methods.prediction import Part, Prediction
from mmad_bank.methods.verdicts import ModelCalibration, Observed

ENOUGH, LEAST = 19, 9
"""Numbers of validation images: from the first on they are preferred to folds, as they can promise 5 %; below the
second they are left alone, as a verdict at more than 10 % is worth little."""
CALIBRATED = "calibrated"
"""The decision that fuses parts on the scale of held-out normal images."""
NOTHING_HELD_OUT = (
    "decision: expected held-out normal images for 'calibrated', found none; give validation samples, or several"
    " training samples and calibration other than 'none', or another decision"
)


def way_of(
    wanted: CalibratedOn, n_train: int, n_validation: int, *, folds: bool, least: int = LEAST, unit: str = IMAGES
) -> str | None:
    """Choose what a calibration is made on.

    Args:
        wanted: Value of the argument ``calibration``.
        n_train: Number of training images.
        n_validation: Number of validation images.
        folds: Whether ``"auto"`` may take folds.
        least: Smallest number of validation images that ``"auto"`` takes.
        unit: Word for what is counted, where it is not images.

    Returns:
        ``"validation"``, ``"folds"``, or None for no calibration.

    Raises:
        InputError: The images that are wanted are not there.

    Example:
        >>> way_of("auto", 200, 6, folds=True), way_of("auto", 200, 20, folds=True), way_of("auto", 200, 0, folds=False)
        ('folds', 'validation', None)
    """
    if wanted == "none":
        return None
    if wanted == "validation" and n_validation == 0:
        raise InputError(f"calibration: expected validation {unit} for 'validation', found none")
    if wanted == "folds" and n_train < 2:
        raise InputError(f"calibration: expected at least 2 training {unit} for 'folds', found {n_train}")
    if wanted != "auto":
        return wanted
    if n_validation < ENOUGH and folds and n_train >= 2 and n_train > n_validation:
        return "folds"
    return "validation" if n_validation >= least else None


def origin_of(way: str, parts: FitParts | None) -> str:
    """Return words for what a calibration is made on.

    Example:
        >>> origin_of("folds", None)
        'training images, scored in folds'
    """
    unit = IMAGES if parts is None else PARTS
    return f"validation {unit}" if way == "validation" else f"training {unit}, scored in folds"


class Predicting(Protocol):
    """A fitted method, as far as this module knows one."""

    calibration_folds: int

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities of a sample that it looks at."""

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Score samples together."""


Refit = Callable[[Samples, Path], Predicting]
"""Function that fits the same method on other samples, with a folder for its stages."""


class Found(NamedTuple):
    """What held-out images tell: calibration and fusion of the parts; None where there are none."""

    calibration: ModelCalibration | None
    fusion: CalibratedFusion | None


class _Seen(NamedTuple):
    """What is kept of a prediction: not the sample."""

    score: float
    prepared_map: Tensor
    parts: Mapping[str, Part]
    frame: Frame
    id: str


def calibrate_by_predicting(
    method: Predicting,
    refit: Refit,
    dataset: Samples,
    validation: Samples | None,
    stages: Stages,
    *,
    way: str | None,
    groups: Sequence[str] | None = None,
    parts: FitParts | None = None,
    one_scale: bool = False,
) -> Found:
    """Calibrate a method on its predictions of held-out samples, as a stage of its fit.

    Samples that cannot be used, and defective ones, are left out. Folds fit the method anew for each of them.

    Args:
        method: The fitted method, which does not fuse its parts on one scale yet.
        refit: Function that fits it on other samples.
        dataset: The training samples.
        validation: The validation samples, none of which is a training sample.
        stages: Stages of the fit.
        way: What it is calibrated on, see :func:`way_of`.
        groups: Part of each training sample, which no fold cuts; None where each counts by itself.
        parts: Which parts the samples show; None where each counts by itself.
        one_scale: Whether the method will fuse its parts on the scale of held-out images.
    """
    if way is None:
        return Found(None, None)

    def predictions() -> Iterator[Prediction]:
        if way == "validation":
            assert validation is not None
            yield from _usable(method, validation)
            return
        folds = folds_of_marks(marks_of(dataset), method.modalities, method.calibration_folds, groups)
        if len(folds) < 2:
            raise InputError(one_fold(len(dataset), groups))
        for number, fold in enumerate(folds, 1):
            own, rest = (some_of(dataset, numbers_of(runs)) for runs in fold)
            with within("fold", number, len(folds)), tempfile.TemporaryDirectory(prefix="mmad-bank-fold-") as folder:
                yield from _usable(refit(rest, Path(folder)), own)

    def write(path: Path) -> None:
        seen = [_Seen(one.score, one.prepared_map, one.parts, one.frame, one.sample.id) for one in predictions()]
        found = _found(seen, origin_of(way, parts), one_scale, parts)
        path.write_text(json.dumps([one and one.as_json() for one in found]))

    calibration, fusion = json.loads(stages.run("calibration.json", write).read_text())
    return Found(
        None if calibration is None else ModelCalibration.from_json(calibration),
        None if fusion is None else CalibratedFusion.from_json(fusion),
    )


def _found(seen: Sequence[_Seen], origin: str, one_scale: bool, parts: FitParts | None) -> Found:
    """Make calibration and fusion of held-out images."""
    of_parts = None if parts is None else parts.of([one.id for one in seen])
    scales, observed = PartScales(), Observed(origin, len(seen), of_parts)
    for one in seen:
        if len(one.parts) > 1:
            size = (int(one.prepared_map.shape[0]), int(one.prepared_map.shape[1]))
            shown = {name: picture_of(part.map(size), one.frame) for name, part in one.parts.items()}
            scales.take({name: part.score for name, part in one.parts.items()}, shown)
    together = judged_together(len(seen), of_parts)
    for number, one in enumerate(seen):
        score, own = one.score, one.prepared_map
        fusion = scales.fusion(without=together[number]) if one_scale else None
        if fusion is not None:
            score, own = _fused(fusion, one.parts, own)
        observed.take(score, {name: part.score for name, part in one.parts.items()}, picture_of(own, one.frame))
    return Found(observed.calibration(), scales.fusion())


def fused_on_one_scale(prediction: Prediction, fusion: CalibratedFusion) -> Prediction:
    """Return a prediction whose score and map are those of its parts, fused on the scale of held-out images."""
    score, own = _fused(fusion, prediction.parts, prediction.prepared_map)
    return replace(prediction, score=score, prepared_map=own)


def _fused(fusion: CalibratedFusion, parts: Mapping[str, Part], like: Tensor) -> tuple[float, Tensor]:
    size = (int(like.shape[0]), int(like.shape[1]))
    score = fusion.fuse_images({name: torch.tensor([part.score]) for name, part in parts.items()})
    return float(score), fusion.fuse_pixels({name: part.map(size) for name, part in parts.items()})


def _usable(method: Predicting, samples: Samples) -> Iterator[Prediction]:
    """Yield the predictions of the normal samples that can be used."""
    for number in range(len(samples)):
        with suppress(MmadBankError):
            sample = samples[number]
            if not sample.label:
                yield from method.predict_batch([sample])
