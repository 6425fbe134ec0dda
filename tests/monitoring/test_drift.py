"""Drift: the evidence is fair where there is none, and grows where scores change."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mmad_bank.calibration import Calibration
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.monitoring import DriftMonitor, drawing, figure


def watch(values: np.ndarray | list[float], n: int, rate: float = 0.01) -> DriftMonitor:
    """Calibrate with the first n values, and take the others."""
    everything = np.asarray(values, dtype=float)
    return DriftMonitor(Calibration(everything[:n]), rate).extend(everything[n:])


def test_evidence_is_one_on_average_over_all_orders() -> None:
    """The definition of no drift: with every order as likely, at every moment, exactly."""
    paths = [watch(list(order), 2).evidence for order in itertools.permutations(range(7))]
    np.testing.assert_allclose((10.0 ** np.array(paths)).mean(axis=0), 1, rtol=1e-12)


def test_ties_only_lower_it() -> None:
    paths = 10.0 ** np.array([watch(list(o), 2).evidence for o in itertools.permutations([0, 0, 0, 1, 1, 2, 2])])
    means = paths.mean(axis=0)
    assert bool((means < 1).all())
    assert bool((np.diff(means) <= 1e-12).all())


@pytest.mark.parametrize("rate", [0.5, 0.7])
def test_false_warnings_are_bounded_over_all_orders(rate: float) -> None:
    warned = [watch(list(order), 2, rate).found is not None for order in itertools.permutations(range(8))]
    assert 0 < np.mean(warned) <= rate


def distribution(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng([20_261_127, seed]).gamma(4.0, size=n)


@pytest.mark.parametrize("n", [5, 30, 99])
def test_false_warnings_keep_to_their_rate(n: int) -> None:
    """Few calibration images or many: by chance alone no more than a tenth of 300 monitors may ever warn."""
    rounds, rate = 300, 0.1
    warned = sum(watch(distribution(1000 * n + seed, n + 250), n, rate).found is not None for seed in range(rounds))
    assert warned <= rate * rounds + 3 * math.sqrt(rounds * rate * (1 - rate))
    assert warned >= 3, "a bound that is never near is no use"


def test_p_values_by_the_calibration_alone_would_not_do() -> None:
    """Why each image joins the reference: where the calibration was low by luck, all later p-values are small."""
    values = distribution(1, 2019)
    unlucky = Calibration(np.sort(values[:200])[:19])  # as low as 19 images may turn out
    p_values = unlucky.p_values(torch.from_numpy(values[200:]))
    assert float((p_values <= 0.1).double().mean()) > 0.5
    joined = DriftMonitor(unlucky).extend(values[200:]).p_values[-1000:]
    assert np.mean(np.array(joined) <= 0.1) < 0.13


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "creeps up": (lambda t: t / 100, "up"),
    "jumps": (lambda t: np.full(len(t), 3.0), "up"),
    "creeps down": (lambda t: -t / 100, "down"),
    "drops": (lambda t: np.full(len(t), -3.0), "down"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_drift_is_found(change: str) -> None:
    """In every one of 25 runs, after a peace of 200 images, and not before."""
    added, direction = CHANGES[change]
    for seed in range(25):
        values = distribution(seed, 99 + 800)
        values[299:] += added(np.arange(600))
        found = watch(values, 99).found
        assert found is not None
        assert found.direction == direction
        assert 200 < found.image < 200 + (400 if "creeps" in change else 60)
        assert found.since <= found.image


def test_since_is_near_a_jump() -> None:
    sinces = []
    for seed in range(25):
        values = distribution(seed, 99 + 400)
        values[299:] += 3
        found = watch(values, 99).found
        assert found is not None
        sinces.append(found.since)
    assert abs(np.median(sinces) - 200) <= 5


def test_long_peace_does_not_use_up_the_evidence() -> None:
    values = distribution(3, 99 + 5100)
    values[99 + 5000 :] += 4
    found = watch(values, 99).found
    assert found is not None
    assert 5000 < found.image < 5060


def test_no_single_image_warns() -> None:
    monitor = watch(distribution(4, 99 + 50), 99)
    before = monitor.evidence[-1]
    assert not monitor.update(1e9)
    assert monitor.evidence[-1] - before <= math.log10(2)


def test_only_the_order_of_the_scores_counts() -> None:
    values = distribution(5, 150)
    assert watch(values, 50).evidence == watch(np.log(values), 50).evidence == watch(values * 3 - 1, 50).evidence
    assert watch(values, 50).p_values[0] == float(Calibration(values[:50]).p_values(values[50])), "the first is plain"


def test_warnings_stay() -> None:
    values = np.concatenate([distribution(6, 99), distribution(7, 60) + 5, distribution(8, 3000) - 1])
    monitor = watch(values, 99)
    assert monitor.found is not None
    assert monitor.found.image < 60
    assert monitor.update(1.0)
    assert str(monitor.found) in repr(monitor)


def test_evidence_has_no_largest_value() -> None:
    monitor = watch(np.arange(3000.0), 99)
    assert monitor.evidence[-1] > 400, "beyond what a float of it could hold"
    assert all(map(math.isfinite, monitor.evidence))


def test_it_can_be_kept_and_goes_on() -> None:
    values = distribution(9, 300)
    monitor = pickle.loads(pickle.dumps(watch(values[:200], 99)))
    assert monitor.extend(torch.from_numpy(values[200:])).evidence == watch(values, 99).evidence
    assert len(monitor) == 201


def test_what_is_no_score_is_refused() -> None:
    monitor = DriftMonitor(Calibration(torch.arange(9.0)))
    for wrong in (math.nan, math.inf):
        with pytest.raises(InputError, match=r"^scores: expected finite numbers, found .* for image 0"):
            monitor.update(wrong)
    assert len(monitor) == 0
    for rate in (0, 1, -0.1, True):
        with pytest.raises(InputError, match=r"^false_warning_rate: expected a number above 0 and below 1"):
            DriftMonitor(monitor.calibration, rate)
    with pytest.raises(InputError, match=r"^calibration: expected a Calibration, .* found list$"):
        DriftMonitor([0.0, 1.0])  # type: ignore[arg-type]


# The picture.


@pytest.mark.parametrize(("n", "calibrated"), [(1, 1), (40, 8), (300, 99)])
def test_a_picture_of_peace(n: int, calibrated: int) -> None:
    pytest.importorskip("matplotlib")
    values = distribution(10, calibrated + n)
    made = figure(watch(values, calibrated), values[calibrated:], title="a.csv")
    made.canvas.draw()
    above, below = made.axes
    texts = [one.get_text() for one in above.get_legend().get_texts()]
    assert ("10 % of the normal images are above" in texts) == (calibrated >= 9)
    assert ("1 % of the normal images are above" in texts) == (calibrated >= 99)
    assert ("median of the last 50" in texts) == (n >= 100)
    assert "warning from 100 on: chance of a false one at most 1 %" in [one.get_text() for one in below.texts]
    assert not above.texts


def test_a_picture_of_drift() -> None:
    pytest.importorskip("matplotlib")
    values = np.concatenate([distribution(11, 199), distribution(12, 200) + 4])
    monitor = watch(values, 99)
    assert monitor.found is not None
    made = figure(monitor, values[99:])
    made.canvas.draw()
    since, image = monitor.found.since + 1, monitor.found.image + 1
    assert [one.get_text() for one in made.axes[0].texts] == [
        f"scores have risen since about image {since},\nfound at image {image}"
    ]
    with pytest.raises(InputError, match=r"^scores: expected the monitor's, shape \(300,\), found \(299,\)"):
        figure(monitor, values[100:])


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="drawing the scores needs the package 'matplotlib'"):
        figure(watch(distribution(1, 20), 9), distribution(1, 20)[9:])
