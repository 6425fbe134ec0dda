"""Held-out scores, and the p-values and thresholds that follow from them."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch

from mmad_bank.calibration import LEAST_FOR_TAIL, Calibration
from mmad_bank.errors import InputError


def left_out_alarms(values: torch.Tensor, rate: float) -> int:
    """Count the values that are bad among all the others."""
    alarms = 0
    for i in range(len(values)):
        others = Calibration(torch.cat([values[:i], values[i + 1 :]]))
        alarms += int(float(values[i]) > others.threshold(rate).score)
    return alarms


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 1 / 3, 0.5])
@pytest.mark.parametrize("n", [19, 29, 100])
def test_the_promise_is_exact(n: int, rate: float) -> None:
    """Of n + 1 exchangeable images each may be the new one: just ⌊rate · (n + 1)⌋ of them are called bad."""
    values = torch.randn(n + 1, generator=torch.Generator().manual_seed(n)).exp()
    assert left_out_alarms(values, rate) == math.floor(rate * (n + 1) + 1e-9)


def test_ties_do_not_break_the_promise() -> None:
    values = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0])
    for rate in (0.1, 0.2, 0.5, 0.9):
        assert left_out_alarms(values, rate) <= rate * len(values)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.25])
def test_a_score_is_above_the_threshold_if_its_p_value_is_at_most_the_rate(rate: float) -> None:
    calibration = Calibration(np.random.default_rng(1).normal(size=99).astype(np.float32))
    scores = torch.cat([calibration.scores, torch.linspace(-4, 4, 1001, dtype=torch.float64)])
    above = scores > calibration.threshold(rate).score
    assert torch.equal(above, calibration.p_values(scores) <= rate * (1 + 1e-12))


def test_p_values_count_the_scores_that_are_as_high() -> None:
    scores = torch.randn(37, generator=torch.Generator().manual_seed(0)).double()
    new = torch.cat([scores[:5], torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double().flatten()])
    expected = [(1 + sum(float(one) >= float(s) for one in scores)) / 38 for s in new]
    found = Calibration(scores).p_values(new.view(5, 5))
    assert found.shape == (5, 5)
    assert found.flatten().tolist() == pytest.approx(expected, abs=0)


def test_a_score_that_is_no_number_has_no_p_value() -> None:
    found = Calibration(torch.arange(9.0)).p_values(torch.tensor([math.nan, math.inf, -math.inf]))
    assert math.isnan(found[0])
    assert found[1:].tolist() == [0.1, 1.0]


def test_the_usual_rate_is_one_in_a_hundred_or_what_can_be_promised() -> None:
    assert Calibration(torch.arange(200.0)).rate() == 0.01
    few = Calibration(torch.arange(9.0))
    assert few.rate() == few.smallest_rate == 0.1
    assert few.threshold() == (8.0, 0.1, False)


def test_a_rate_that_is_too_small_for_a_few_images_is_refused() -> None:
    few = Calibration(torch.arange(LEAST_FOR_TAIL - 1.0), "validation images")
    with pytest.raises(InputError, match=r"expected at least 1/\(n \+ 1\) = 0.05 with 19 held-out images, .* 0.01"):
        few.threshold(0.01)


def test_below_what_can_be_promised_a_tail_extrapolates() -> None:
    calibration = Calibration(torch.arange(1.0, 51.0))
    last, first = calibration.threshold(1 / 51), calibration.threshold(0.019)
    assert not last.extrapolated
    assert first.extrapolated
    assert first.score >= last.score
    rising = [calibration.threshold(rate).score for rate in (1e-2, 5e-3, 3e-3, 2e-3)]
    assert rising == sorted(rising)
    with pytest.raises(InputError, match=r"expected at least 0.001961, a tenth of the 1/\(n \+ 1\) that 50 .* 0.001$"):
        calibration.threshold(0.001)
    with pytest.raises(InputError, match="a tenth of the 1"):
        calibration.threshold(1e-320)


@pytest.mark.parametrize(("shape", "scale"), [(0.0, 1.0), (0.25, 2.0), (0.5, 0.1)])
def test_the_tail_is_that_of_a_generalized_pareto_distribution(shape: float, scale: float) -> None:
    """Its quantiles, evenly spread, are fitted; where the true shape is 0 or more the parameters come back."""
    n = 4000
    left = 1 - (np.arange(1, n + 1) - 0.5) / n
    values = scale * (-np.log(left) if shape == 0 else (left**-shape - 1) / shape)
    tail = Calibration(values).tail
    assert tail is not None
    start = scale * (math.log(10) if shape == 0 else (10**shape - 1) / shape)
    assert tail.start == pytest.approx(start, rel=0.02)
    assert tail.shape == pytest.approx(shape, abs=0.05)
    assert tail.scale == pytest.approx(scale + shape * start, rel=0.06)  # excesses of one are of the same family
    truth = scale * (math.log(1e4) if shape == 0 else (1e4**shape - 1) / shape)
    assert tail.score_at(1e-4) == pytest.approx(truth, rel=0.1)


def test_a_tail_without_an_end_is_taken_where_few_scores_suggest_one() -> None:
    tail = Calibration(torch.linspace(0, 1, 200)).tail
    assert tail is not None
    assert tail.shape == 0
    assert tail.score_at(1e-3) > 1


def test_equal_scores_have_a_threshold() -> None:
    calibration = Calibration(torch.full((30,), 2.0))
    assert calibration.threshold(1e-2) == (2.0, 1e-2, True)
    assert calibration.normalized(torch.tensor([2.0, 3.0])).tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("power", [-25, 0, 300, 307])
def test_scores_of_any_size_give_finite_numbers(power: int) -> None:
    """What is computed does not depend on the unit of the scores."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(40, generator=generator, dtype=torch.float64) * 4
    plain, huge = Calibration(scores), Calibration(scores * 10.0**power)
    for rate in (0.1, 1 / 41, 0.1 / 41):
        expected = plain.threshold(rate)
        found = huge.threshold(rate)
        assert math.isfinite(found.score)
        assert found.score == pytest.approx(min(expected.score * 10.0**power, sys.float_info.max), rel=1e-9)
        new = torch.tensor([-17.0, -2.0, 0.0, 3.0, 17.0], dtype=torch.float64)
        normalized = huge.normalized(new * 10.0**power, rate)
        if math.isfinite(expected.score * 10.0**power):
            assert torch.allclose(normalized, plain.normalized(new, rate), rtol=1e-9)


@pytest.mark.filterwarnings("error")
def test_the_largest_numbers_have_finite_results() -> None:
    largest = sys.float_info.max
    calibration = Calibration(torch.tensor([-largest] * 20 + [largest], dtype=torch.float64))
    assert calibration.normalized(torch.tensor([-largest, 0, largest], dtype=torch.float64)).tolist() == pytest.approx(
        [0, 1 / 3, 0.5]
    )
    assert calibration.threshold(0.1 / 22).score == largest
    equal = Calibration(torch.zeros(30))
    assert equal.normalized(torch.tensor([0.0, 1e308, torch.inf], dtype=torch.float64)).tolist() == [0, 1, 1]


def test_normalized_scores_have_the_threshold_in_the_middle() -> None:
    calibration = Calibration(torch.arange(1.0, 101.0))
    threshold = calibration.threshold(0.05).score
    scores = torch.linspace(-5, 1e6, 1000)
    found = calibration.normalized(scores, 0.05)
    assert float(calibration.normalized(threshold, 0.05)) == 0.5
    assert bool(((found >= 0) & (found < 1)).all())
    assert bool((found[scores > 1].diff() > 0).all())


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, math.nan, True, "1%"])
def test_rates_that_are_none_are_refused(rate: object) -> None:
    with pytest.raises(InputError, match="false_alarm_rate: expected a number above 0 and below 1"):
        Calibration(torch.arange(9.0)).threshold(rate)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "scores", [torch.empty(0), torch.ones(2, 2), torch.tensor([1.0, math.nan]), torch.tensor([True])]
)
def test_scores_that_are_none_are_refused(scores: torch.Tensor) -> None:
    with pytest.raises(InputError, match="scores: expected"):
        Calibration(scores)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"scores": [1.0, "2"]}, "scores[1]: expected a finite number, found '2'"),
        ({"scores": [True]}, "scores[0]: expected a finite number, found True"),
        ({"scores": [1, None]}, "scores[1]: expected a finite number, found None"),
        ({"scores": [math.nan]}, "scores[0]: expected a finite number, found nan"),
        ({"scores": [1.0, -math.inf]}, "scores[1]: expected a finite number, found -inf"),
        ({"scores": [10**400]}, "scores[0]: expected a finite number, found a huge number"),
        ({"scores": "123"}, "scores: expected a list of numbers, found '123'"),
        ({"scores": {"0": 1.0}}, "scores: expected a list of numbers, found an object of 1"),
        ({"scores": []}, "scores: expected numbers (n,), found torch.float64 (0,)"),
        ({"origin": 3}, "origin: expected a text, found 3"),
        ({"origin": None}, "origin: expected a text, found None"),
    ],
)
def test_json_of_another_kind_is_refused(change: dict[str, object], line: str) -> None:
    with pytest.raises(InputError) as error:
        Calibration.from_json({"origin": "held-out images", "scores": [1.0, 2.0], **change})
    assert str(error.value) == line
    for content in ([], "x", None, 3):
        with pytest.raises(InputError, match=r"^scores: expected an object that has it, found "):
            Calibration.from_json(content)  # type: ignore[arg-type]


def test_json_gives_the_same_back() -> None:
    before = Calibration(torch.rand(50, generator=torch.Generator().manual_seed(0)), "validation images")
    after = Calibration.from_json(json.loads(json.dumps(before.as_json())))
    assert torch.equal(after.scores, before.scores)
    assert after.origin == before.origin
