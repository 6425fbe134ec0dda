"""Notes on the images of an evaluation so far, and the measurements of them in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.sections import READING
from mmad_bank.data.names import ANOMALOUS, GOOD
from mmad_bank.data.sample import Sample
from mmad_bank.errors import InputError
from mmad_bank.evaluation.decisions import Decisions
from mmad_bank.evaluation.parts import PartScores
from mmad_bank.evaluation.results import (
    HIGHEST_DEFECT,
    HIGHEST_GOOD,
    LOWEST_DEFECT,
    LOWEST_GOOD,
    RESULT,
    ROLES,
    Evaluation,
    Example,
    Metrics,
    SampleScore,
)
from mmad_bank.methods.base import Prediction
from mmad_bank.methods.roi import square_inside
from mmad_bank.methods.verdicts import FUSED
from mmad_bank.metrics import AUPRO, AUROC


class Tally:
    """What is known of the images so far."""

    def __init__(
        self,
        limits: tuple[float, ...],
        n_examples: int,
        watch: Callable[[Prediction], None] | None,
        n_thresholds: int | None = 100,
        views: str | None = None,
        banks: Collection[str] = (),
    ) -> None:
        self.limits, self.n_examples, self.watch, self.n_thresholds = limits, n_examples, watch, n_thresholds
        self.views, self.banks = views, banks
        self.labels: dict[str, str] = {}
        self.scores: list[SampleScore] = []
        self.failed: dict[str, str] = {}
        self.categories: dict[str, None] = {}
        self.warnings: dict[str, None] = {}  # in order, each once
        self.maskless = 0
        self.seconds = 0.0
        self._judge: Callable[[list[int], list[float]], Decisions] | None = None
        self._pixels: dict[str, dict[str, AUPRO]] = {}  # by result and kind
        self._examples: dict[str, list[tuple[float, int, Prediction]]] = {role: [] for role in ROLES}
        AUPRO(limits, n_thresholds)  # says what is wrong with them before the work

    @property
    def seen(self) -> int:
        """Number of samples so far, those that failed among them."""
        return len(self.scores) + len(self.failed)

    def fail(self, sample_id: str, error: Exception) -> None:
        """Note why a sample could not be scored."""
        self.failed[sample_id or f"sample {self.seen}"] = " ".join(str(error).split())

    def add(self, prediction: Prediction) -> None:
        """Measure a prediction."""
        sample, number = prediction.sample, self.seen
        results = {name: part.score for name, part in prediction.parts.items()} if len(prediction.parts) > 1 else {}
        maps = prediction.prepared_maps()
        finite = all(math.isfinite(score) for score in (prediction.score, *results.values()))
        if not finite or not all(bool(torch.isfinite(values).all()) for values in maps.values()):
            self.fail(sample.id, InputError(f"{sample.id}: the method gave NaN or infinity"))
            return
        name = sample.id or str(number)
        kind = _kind(sample)
        label, score = int(sample.label > 0), float(prediction.score)
        self.scores.append(SampleScore(name, label, kind, score, results, prediction.p_value, prediction.verdict))
        if prediction.calibration is not None and prediction.threshold is not None:
            self._judge = partial(
                Decisions.of, threshold=prediction.threshold, held_out=len(prediction.calibration),
                origin=prediction.calibration.origin, unit=prediction.calibration.own.unit,
            )  # fmt: skip
        self.categories[sample.category] = None
        self.warnings |= dict.fromkeys(prediction.notes)
        if sample.mask is None:
            self.maskless += 1
        else:
            box, inside = _counted(prediction)
            truth = (sample.mask if inside is None else sample.mask & inside)[box]
            for result, values in maps.items():
                self._of(result, kind).update(truth, values[box])
        if not self.labels:
            self.labels = {FUSED: RESULT, **{name: self._label(name) for name in prediction.parts}}
        self._keep(prediction, number)
        if self.watch is not None:
            self.watch(prediction)

    def _label(self, part: str) -> str:
        """Return a part's name for readers; "bank" keeps the bank of fused features from looking like the result."""
        return f"{part} {'bank' if part in self.banks else 'branch'}"

    def _of(self, result: str, kind: str) -> AUPRO:
        kinds = self._pixels.setdefault(result, {})
        if kind not in kinds:
            kinds[kind] = AUPRO(self.limits, self.n_thresholds)
        return kinds[kind]

    def _keep(self, prediction: Prediction, number: int) -> None:
        """Keep the prediction if it is among the first of a role."""
        anomalous = bool(prediction.sample.label)
        highest, lowest = (HIGHEST_DEFECT, LOWEST_DEFECT) if anomalous else (HIGHEST_GOOD, LOWEST_GOOD)
        for role, sign in ((highest, -1.0), (lowest, 1.0)):
            kept = self._examples[role]
            kept.append((sign * prediction.score, number, prediction))
            kept.sort(key=lambda entry: entry[:2])
            del kept[self.n_examples :]

    def finish(self, method: str, sections: dict[str, float]) -> Evaluation:
        """Compute the metrics."""
        results = (FUSED, *self.scores[0].parts)
        kinds = sorted({score.defect for score in self.scores if score.label})
        n_images = len(self.scores)
        total = self.seconds + sections.get(READING, 0.0)
        parts = None if self.views is None else PartScores.of(self.scores, self.views)
        judged = self.scores if parts is None else parts.scores
        evaluation = Evaluation(
            method=method,
            category=", ".join(self.categories),
            limits=self.limits,
            metrics={result: self._measure(result, kinds) for result in results},
            kinds={kind: {result: self._measure(result, [kind]) for result in results} for kind in kinds},
            scores=self.scores,
            failed=self.failed,
            notes=[*self._notes(), *([] if parts is None else parts.notes)],
            seconds=total / n_images,
            sections={name: taken / n_images for name, taken in sections.items()},
            labels=self.labels,
            decisions=self._judge and self._judge([one.label for one in judged], [one.score for one in judged]),
            parts=parts,
        )
        for result in results:
            evaluation.roc[result] = self._images(result, kinds).curve()
            evaluation.pro[result] = self._union(result, kinds).curve()
        shown: set[int] = set()
        for role in ROLES:
            for _, number, prediction in self._examples[role]:
                if number not in shown:
                    shown.add(number)
                    evaluation.examples.append(Example(role, prediction))
        return evaluation

    def _measure(self, result: str, kinds: list[str]) -> Metrics:
        images, pixels = self._images(result, kinds), self._union(result, kinds)
        undefined = {}
        if images.undefined is not None:
            undefined["image_auroc"] = images.undefined
        if pixels.undefined is not None:
            undefined["pixel_auroc"] = pixels.undefined.replace("AUPRO", "P-AUROC", 1)
            undefined["aupro"] = pixels.undefined
        aupro = {limit: _defined(value) for limit, value in pixels.compute().items()}
        return Metrics(_defined(images.compute()), _defined(pixels.auroc()), aupro, undefined)

    def _images(self, result: str, kinds: list[str]) -> AUROC:
        chosen = [score for score in self.scores if score.label == 0 or score.defect in kinds]
        values = [score.score if result == FUSED else score.parts[result] for score in chosen]
        metric = AUROC()
        metric.update(np.array([score.label for score in chosen]), np.array(values, dtype=np.float64))
        return metric

    def _union(self, result: str, kinds: list[str]) -> AUPRO:
        own = self._pixels.get(result, {})
        groups = [own[kind] for kind in (GOOD, *kinds) if kind in own]
        return AUPRO.union(groups or [AUPRO(self.limits, self.n_thresholds)])

    def _notes(self) -> list[str]:
        notes = list(self.warnings)
        if self.maskless:
            what = "image has no mask: it counts" if self.maskless == 1 else "images have no mask: they count"
            notes.append(f"{self.maskless} {what} for I-AUROC only")
        return notes


def _counted(prediction: Prediction) -> tuple[tuple[slice, slice], Tensor | None]:
    """Return the rows and columns of the prepared square whose pixels count, and the region of interest in it.

    They are those of the picture, or the smallest that hold the region. AUPRO measures rectangles: what lies in it but
    outside the region counts as without defects, and gets the lowest scores.
    """
    frame, inside = prediction.sample.frame, square_inside(prediction.roi, prediction.sample.frame)
    if inside is None:
        return (slice(None), slice(None)) if frame is None else (frame.rows, frame.columns), None
    rows, columns = (inside.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    return (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)), inside


def _kind(sample: Sample) -> str:
    """Return the group of a sample; its label decides whether it is good."""
    if not sample.label:
        return GOOD
    return sample.defect if sample.defect != GOOD else ANOMALOUS


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
