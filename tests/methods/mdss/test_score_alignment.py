"""Statistics of score maps, and what they are mapped to, against NumPy on all pixels at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmad_bank.errors import InputError
from mmad_bank.methods.mdss.score_alignment import Moments, ScoreAlignment


def maps(n: int, scale: float, shift: float, seed: int) -> torch.Tensor:
    return torch.rand(n, 7, 9, generator=torch.Generator().manual_seed(seed)) ** 2 * scale + shift


@pytest.mark.parametrize("parts", [[1] * 5, [5], [2, 3], [4, 1]])
def test_moments_are_those_of_all_values_of_the_population(parts: list[int]) -> None:
    scores = maps(5, 0.01, 1000.0, seed=3)  # a spread of 1e-5 of the mean
    seen = Moments()
    for part in scores.split(parts):
        seen.update(part)
    seen.update(torch.empty(0))
    values = scores.double().numpy()
    assert seen.count == values.size
    assert seen.mean == pytest.approx(values.mean(), rel=1e-12)
    assert seen.std == pytest.approx(values.std(), rel=1e-6)
    # One value more or less in the divisor would show at this tolerance.
    assert abs(values.std(ddof=1) / values.std() - 1) > 1e-4


def aligned() -> tuple[np.ndarray, np.ndarray, ScoreAlignment]:
    rgb, xyz = maps(3, 40.0, 5.0, seed=1), maps(4, 0.02, 0.001, seed=2)
    moments = Moments(), Moments()
    moments[0].update(rgb)
    moments[1].update(xyz)
    return rgb.double().numpy(), xyz.double().numpy(), ScoreAlignment.of(*moments)


def test_three_deviations_fall_on_three_deviations() -> None:
    rgb, xyz, alignment = aligned()
    for sigmas in (-3, 0, 3):
        at = torch.tensor(rgb.mean() + sigmas * rgb.std())
        assert alignment.align(at).item() == pytest.approx(xyz.mean() + sigmas * xyz.std(), rel=1e-6)


def test_the_union_is_the_larger_one_everywhere() -> None:
    rgb, xyz, alignment = aligned()
    union = alignment.union(torch.from_numpy(rgb[:3]), torch.from_numpy(xyz[:3])).numpy()
    expected = np.maximum((rgb - rgb.mean()) / rgb.std() * xyz.std() + xyz.mean(), xyz[:3])
    assert np.allclose(union, expected)
    assert (union == xyz[:3]).any()
    assert (union != xyz[:3]).any()


@pytest.mark.parametrize("bad", [torch.empty(0), torch.full((3, 3), 2.0), torch.tensor([1.0, torch.nan])])
def test_scores_that_say_nothing_are_refused(bad: torch.Tensor) -> None:
    good, empty = Moments(), Moments()
    good.update(torch.rand(9))
    empty.update(bad)
    with pytest.raises(InputError, match="xyz: expected scores of normal samples that vary"):
        ScoreAlignment.of(good, empty)
    with pytest.raises(InputError, match="rgb: expected scores"):
        ScoreAlignment.of(empty, good)
