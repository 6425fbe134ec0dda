"""Parts that several pictures show, in an evaluation: one score and one label for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mmad_bank.data.views import ViewPattern, group_views, usual_number
from mmad_bank.metrics import AUROC


class Scored(Protocol):
    """The scores of one image, as :class:`mmad_bank.evaluation.SampleScore` has them."""

    @property
    def id(self) -> str:
        """Id of the sample."""

    @property
    def label(self) -> int:
        """0 for normal, 1 for anomalous."""

    @property
    def score(self) -> float:
        """The method's score."""

    @property
    def p_value(self) -> float | None:
        """Conformal p-value of the score."""

    @property
    def verdict(self) -> str | None:
        """``"good"`` or ``"bad"``."""


@dataclass(frozen=True)
class PartScore:
    """The score of a part, the largest of its pictures'.

    Attributes:
        part: Name of the part.
        view: View with the largest score.
        views: Number of its pictures.
        label: 1 if one of them is anomalous, else 0.
        score: The score.
        p_value: Conformal p-value of the score; None where the method is not calibrated.
        verdict: ``"good"`` or ``"bad"``, likewise.
    """

    part: str
    view: str
    views: int
    label: int
    score: float
    p_value: float | None = None
    verdict: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values."""
        own = {"part": self.part, "view": self.view, "views": self.views, "label": self.label, "score": self.score}
        return own if self.verdict is None else {**own, "p_value": self.p_value, "verdict": self.verdict}


@dataclass(frozen=True)
class PartScores:
    """The parts of an evaluation.

    Attributes:
        scores: Scores of all parts, in the order in which they come first.
        notes: Remarks that a reader must know: images that show no part, and so count by themselves only; parts with
            fewer views than most.
    """

    scores: list[PartScore] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, images: Sequence[Scored], pattern: str) -> PartScores:
        """Sort scored images by the parts that they show.

        Args:
            images: Scores of the images.
            pattern: Pattern of their ids, see :class:`mmad_bank.data.ViewPattern`.

        Example:
            >>> from mmad_bank.evaluation import SampleScore
            >>> images = [SampleScore("1_a", 0, "good", 2.0, {}), SampleScore("1_b", 1, "hole", 1.0, {})]
            >>> PartScores.of(images, "{part}_{view}").scores
            [PartScore(part='1', view='a', views=2, label=1, score=2.0, p_value=None, verdict=None)]
        """
        found = group_views(ViewPattern(pattern), [one.id for one in images])
        notes = [f"{line}; such images count by themselves only" for line in dict.fromkeys(found.left_out.values())]
        usual = usual_number(map(len, found.parts.values()))
        fewer = sum(len(views) < usual for views in found.parts.values())
        if fewer:
            joined = "" if pattern.startswith("*/") else f"; */{pattern} joins those in folders of several kinds"
            notes.append(f"{fewer} of {len(found.parts)} parts have fewer than {usual} views{joined}")
        return cls(list(_scores(images, found.parts)), notes)

    @property
    def auroc(self) -> float | None:
        """AUROC of the parts; None where all are good, or none is."""
        labels = [one.label for one in self.scores]
        if len(set(labels)) < 2:
            return None
        metric = AUROC()
        metric.update(np.array(labels), np.array([one.score for one in self.scores]))
        return float(metric.compute())

    @property
    def n_anomalous(self) -> int:
        """Number of parts of which an image is anomalous."""
        return sum(one.label for one in self.scores)

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values."""
        good = len(self.scores) - self.n_anomalous
        return {
            "good": good, "anomalous": self.n_anomalous, "auroc": self.auroc,
            "scores": [one.as_json() for one in self.scores],
        }  # fmt: skip


def _scores(images: Sequence[Scored], parts: dict[str, dict[str, int]]) -> Iterator[PartScore]:
    for part, views in parts.items():
        view = max(views, key=lambda name: images[views[name]].score)
        worst, label = images[views[view]], max(int(images[number].label > 0) for number in views.values())
        yield PartScore(part, view, len(views), label, worst.score, worst.p_value, worst.verdict)
