"""Verdicts of parts that several pictures show, at one false-alarm rate for all of a part's pictures together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from mmad_bank.calibration import Threshold
from mmad_bank.data.views import ViewPattern, group_views, names_below
from mmad_bank.errors import InputError
from mmad_bank.methods.parts import PartViews
from mmad_bank.methods.prediction import Prediction
from mmad_bank.methods.verdicts import ModelCalibration, Verdict

ON_PICTURES = (
    "expected a model that is calibrated on parts, found one calibrated on single pictures; fit it anew with views"
)


class Judging(Protocol):
    """A method, as far as this module knows one."""

    views: str | None
    calibration_: ModelCalibration | None


@dataclass(frozen=True, repr=False)
class PartVerdict:
    """Verdict of a part: its score is the largest of its pictures', so it is bad if any of them is.

    Attributes:
        part: Name of the part.
        predictions: Predictions of its pictures, by view.
        known: What the model's calibration knows of the views of parts; None without a calibration.
        view: The view with the highest score.
    """

    part: str
    predictions: Mapping[str, Prediction]
    known: PartViews | None = field(default=None)

    @cached_property
    def view(self) -> str:
        """Name of the view with the highest score."""
        return max(self.predictions, key=lambda view: _or_least(self.predictions[view].score))

    @property
    def worst(self) -> Prediction:
        """The prediction of that view: its map and its regions say where to look."""
        return self.predictions[self.view]

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views that were judged."""
        return tuple(self.predictions)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the views that held-out parts have and this one has not, as far as views have names."""
        return () if self.known is None else self.known.missing(self.views)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks that a reader of the verdict must know: views that are missing, or that no held-out part has."""
        return () if self.known is None else self.known.remarks(self.views)

    @property
    def promised(self) -> bool:
        """Whether the false-alarm rate is promised for a part with these views; not without a calibration."""
        return self.known is not None and self.known.promised(self.views)

    @property
    def score(self) -> float:
        """The largest score of the pictures."""
        return self.worst.score

    @property
    def p_value(self) -> float | None:
        """Conformal p-value of the score among those of held-out parts; None without a calibration."""
        return self.worst.p_value

    @property
    def threshold(self) -> Threshold | None:
        """The score above which a part is bad, and the false-alarm rate; None without a calibration."""
        return self.worst.threshold

    @property
    def verdict(self) -> Verdict | None:
        """``"bad"`` if the score is above the threshold, else ``"good"``; None without a calibration."""
        return self.worst.verdict

    @property
    def normalized_score(self) -> float | None:
        """The score from 0 to 1, the threshold at 0.5; None without a calibration."""
        return self.worst.normalized_score

    def __repr__(self) -> str:
        of = f"{len(self.views)} view{'' if len(self.views) == 1 else 's'}"
        verdict = "" if self.verdict is None else f"{self.verdict}, "
        return f"<PartVerdict of {self.part}: {verdict}score {self.score:.4g} of {of}, worst {self.view}>"


def pattern_of(method: Judging, views: str | None = None) -> ViewPattern | None:
    """Return the pattern by which a method's pictures are sorted by part.

    Args:
        method: A method.
        views: Another pattern than its own, of pictures that are named otherwise than those that it was fitted on.

    Returns:
        None where each picture is judged by itself.

    Raises:
        InputError: The pattern is none, or the method is calibrated on single pictures.
    """
    if views is None and method.views is None:
        return None
    if method.calibration_ is not None and method.calibration_.views is None:
        raise InputError(f"views: {ON_PICTURES}")
    return ViewPattern(str(method.views) if views is None else views)


def judge_parts(predictions: Sequence[Prediction], views: str | None = None) -> list[PartVerdict]:
    """Judge parts that several pictures show, one verdict for each.

    Of normal parts at most a share ``false_alarm_rate`` is called bad, however many pictures each has and however
    alike these are, as long as new normal parts are like the held-out ones and have no more views than they.

    Args:
        predictions: Predictions of one model for pictures, in any order; all pictures of a part among them.
        views: Pattern of the pictures' names, see :class:`mmad_bank.data.ViewPattern`; default: the model's.

    Returns:
        Verdicts in the order in which parts come first.

    Raises:
        InputError: Predictions are of several models, or of one that is calibrated on single pictures; no pattern is
            known; a picture's name is not of the pattern; or two pictures show a part from one view.

    Example:
        >>> model = PatchCore(views="{part}_{view}").fit(train)  # doctest: +SKIP
        >>> for one in judge_parts(model.predict(["new/7_left.png", "new/7_right.png"])):  # doctest: +SKIP
        ...     print(one.part, one.verdict, one.p_value, one.view)
        7 good 0.31 left
    """
    if not predictions:
        return []
    first = predictions[0]
    if any(
        one.calibration is not first.calibration or one.false_alarm_rate != first.false_alarm_rate
        for one in predictions
    ):
        raise InputError("predictions: expected those of one model, found those of several")
    known = None if first.calibration is None else first.calibration.views
    if first.calibration is not None and known is None:
        raise InputError(f"predictions: {ON_PICTURES}")
    if views is None and known is None:
        raise InputError("views: expected a pattern such as '{part}_{view}', as the model has no calibration with one")
    pattern = ViewPattern(known.pattern if views is None and known is not None else str(views))
    found = group_views(pattern, *_names_of(predictions))
    if found.left_out:
        raise InputError(f"predictions: {next(iter(found.left_out.values()))}")
    return [
        PartVerdict(part, {view: predictions[number] for view, number in members.items()}, known)
        for part, members in found.parts.items()
    ]


def _names_of(predictions: Sequence[Prediction]) -> tuple[list[str], list[Path | None]]:
    """Return names and files of predicted pictures; a picture's file that was given alone is named by its path."""
    samples = [one.sample for one in predictions]
    files = [sample.rgb_path or sample.xyz_path for sample in samples]
    names = [sample.id for sample in samples]
    alone = [i for i, file in enumerate(files) if file is not None and names[i] == file.stem]
    for i, name in zip(alone, names_below([files[i] or "" for i in alone]), strict=True):
        names[i] = name
    return names, files


def _or_least(score: float) -> float:
    return -math.inf if math.isnan(score) else score
