"""Verdicts on images whose truth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

pytest.importorskip("scipy")

from mmad_bank.calibration import Threshold
from mmad_bank.evaluation import Decisions


def judged(labels: list[int], scores: list[float], limit: float, rate: float = 0.05) -> Decisions:
    return Decisions.of(labels, scores, Threshold(limit, rate, False), 19, "validation images")


def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = (rng.normal(size=200) + labels).round(1)  # with ties
    one = judged(labels.tolist(), scores.tolist(), 0.5)
    bad = scores > 0.5
    assert one.precision == pytest.approx(precision_score(labels, bad))
    assert one.recall == pytest.approx(recall_score(labels, bad))
    assert one.f1 == pytest.approx(f1_score(labels, bad))
    assert one.found + one.missed == labels.sum()
    assert one.false_alarm_rate == pytest.approx(bad[labels == 0].mean())
    best = max(f1_score(labels, scores > limit) for limit in [-math.inf, *np.unique(scores)])
    assert one.best_f1 == pytest.approx(best)
    assert f1_score(labels, scores > one.best_threshold) == pytest.approx(best)


def test_the_best_threshold_may_call_everything_bad() -> None:
    one = judged([1, 0, 1, 1], [1.0, 2.0, 3.0, 4.0], 10.0)
    assert one.best_f1 == pytest.approx(6 / 7)
    assert one.best_threshold < 1
    assert (one.f1, one.precision, one.recall) == (0.0, None, 0.0)


def test_the_promise_is_held_unless_the_interval_says_no() -> None:
    few = judged([0] * 20, [0.0] * 17 + [2.0] * 3, 1.0)
    assert few.false_alarm_rate == pytest.approx(0.15)
    low, high = few.interval
    assert (low, high) == pytest.approx((0.0321, 0.3789), abs=1e-3)  # Clopper and Pearson's, 3 of 20
    assert few.held
    assert not judged([0] * 200, [0.0] * 170 + [2.0] * 30, 1.0).held


def test_without_good_or_without_anomalous_images() -> None:
    only_bad, only_good = judged([1, 1], [1.0, 3.0], 2.0), judged([0, 0], [1.0, 3.0], 2.0)
    assert (only_bad.false_alarm_rate, only_bad.interval, only_bad.held) == (None, None, None)
    assert (only_good.f1, only_good.recall, only_good.best_f1, only_good.best_threshold) == (None, None, None, None)
    for one in (only_bad, only_good):
        json.dumps(one.as_json(), allow_nan=False)
