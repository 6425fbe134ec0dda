"""Scores of several parts on the scale of held-out normal images."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from mmad_bank.calibration import Calibration
from mmad_bank.errors import InputError
from mmad_bank.fusion import CalibratedFusion, PartScales
from mmad_bank.fusion.calibrated import POWER, power_mean

FUSION = CalibratedFusion({"xyz": 2.0, "rgb": 30.0}, {"xyz": 0.5, "rgb": 10.0})


def test_the_unit_of_a_part_does_not_matter() -> None:
    scores = {"xyz": torch.tensor([1.0, 2.0, 5.0]), "rgb": torch.tensor([90.0, 30.0, 10.0])}
    other = CalibratedFusion({"xyz": 2000.0, "rgb": 30.0}, {"xyz": 500.0, "rgb": 10.0})
    louder = {**scores, "xyz": scores["xyz"] * 1000}
    torch.testing.assert_close(other.fuse_images(louder), FUSION.fuse_images(scores))
    torch.testing.assert_close(other.fuse_pixels(louder), FUSION.fuse_pixels(scores))


def test_images_lie_between_the_average_and_the_largest_ratio() -> None:
    scores = {"xyz": torch.rand(50) * 8, "rgb": torch.rand(50) * 90}
    ratios = torch.stack([scores["xyz"] / 2, scores["rgb"] / 30])
    fused = FUSION.fuse_images(scores)
    assert bool((fused >= ratios.mean(0) - 1e-5).all())
    assert bool((fused <= ratios.amax(0) + 1e-5).all())
    assert float(FUSION.fuse_images({"xyz": torch.tensor([2.0]), "rgb": torch.tensor([30.0])})) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e35])
def test_a_power_mean_is_that_of_float64_whatever_the_unit(scale: float) -> None:
    ratios = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) * scale
    expected = (ratios.double() / scale).pow(POWER).mean(0).pow(1 / POWER) * scale
    torch.testing.assert_close(power_mean(ratios, POWER), expected.float(), rtol=1e-5, atol=0)
    nothing = torch.tensor([[0.0, -1.0], [0.0, -3.0]])
    assert power_mean(nothing, POWER).tolist() == [0, 0]


def test_pixels_are_fused_linearly() -> None:
    first, second = ({name: torch.rand(2, 5, 4) for name in ("xyz", "rgb")} for _ in range(2))
    both = {name: first[name] + 3 * second[name] for name in first}
    expected = FUSION.fuse_pixels(first) + 3 * FUSION.fuse_pixels(second)
    torch.testing.assert_close(FUSION.fuse_pixels(both), expected)


def test_scales_are_those_of_all_pixels_whatever_the_images_sizes() -> None:
    maps = [torch.randn(height, 7, generator=torch.Generator().manual_seed(height)).abs() for height in (3, 5, 11)]
    scales = PartScales()
    for number, one in enumerate(maps, 1):
        scales.take({"rgb": float(number), "xyz": 0.0}, {"rgb": one, "xyz": torch.zeros_like(one)})
    found = scales.fusion()
    assert found is not None
    pixels = torch.cat([one.flatten() for one in maps]).double()
    assert found.images["rgb"] == 2
    assert found.pixels["rgb"] == pytest.approx(float(pixels.std(correction=0)), rel=1e-9)
    assert (found.images["xyz"], found.pixels["xyz"]) == (1, 1), "a part that never varies keeps its unit"
    assert PartScales().fusion() is None


def test_a_scale_without_some_images_is_that_of_the_others() -> None:
    generator = torch.Generator().manual_seed(2)
    images = [
        (
            {name: float(torch.rand((), generator=generator)) for name in ("xyz", "rgb")},
            {name: torch.rand(4 + i, 5, generator=generator) for name in ("xyz", "rgb")},
        )
        for i in range(6)
    ]

    def of(some: list[int]) -> PartScales:
        scales = PartScales()
        for i in some:
            scales.take(*images[i])
        return scales

    whole = of(list(range(6)))
    for without in ([0], [3], [1, 4]):
        found = whole.fusion(without=without)
        expected = of([i for i in range(6) if i not in without]).fusion()
        assert found is not None
        assert expected is not None
        assert found.images == pytest.approx(expected.images, rel=1e-12)
        assert found.pixels == pytest.approx(expected.pixels, rel=1e-12)
    assert whole.fusion(without=range(6)) == whole.fusion(), "one has to be taken"


@pytest.mark.parametrize(("n", "rate"), [(9, 0.1), (19, 0.05)])
def test_the_false_alarm_rate_holds_for_scores_on_one_scale(n: int, rate: float) -> None:
    """Three parts that vary alike and independently; on its own scale a held-out image would be too near."""
    rng, splits, new = np.random.default_rng(0), 1500, 20
    alarms = {"others": 0, "own": 0}
    for _ in range(splits):
        parts = dict(zip(("a", "b", "c"), rng.gamma(20.0, size=(3, n + new)).astype(np.float32), strict=True))
        scales = PartScales()
        for i in range(n):
            scales.take({name: float(own[i]) for name, own in parts.items()}, dict.fromkeys(parts, torch.rand(2, 2)))
        fused = scales.fusion()
        assert fused is not None
        scores = fused.fuse_images({name: torch.from_numpy(own) for name, own in parts.items()})
        held_out = []
        for i in range(n):
            other = scales.fusion(without=[i])
            assert other is not None
            held_out.append(other.fuse_images({name: torch.tensor([own[i]]) for name, own in parts.items()}))
        for which, calibrating in (("others", torch.cat(held_out)), ("own", scores[:n])):
            limit = Calibration(calibrating).threshold(rate).score
            alarms[which] += int((scores[n:] > limit).sum())
    # The share above the k-th largest of n held-out scores has a beta distribution, with about this variance.
    most = splits * new * (rate + 3 * math.sqrt(rate * (1 - rate) * (1 / (n + 2) + 1 / new) / splits))
    assert alarms["others"] <= most
    assert alarms["own"] > most


def test_json_and_some_of_the_parts() -> None:
    assert CalibratedFusion.from_json(json.loads(json.dumps(FUSION.as_json()))) == FUSION
    assert FUSION.of_parts({"rgb": None}) == CalibratedFusion({"rgb": 30.0}, {"rgb": 10.0})


def test_other_parts_are_refused() -> None:
    with pytest.raises(InputError, match="images: expected scores of xyz, rgb, found xyz"):
        FUSION.fuse_images({"xyz": torch.ones(2)})
    with pytest.raises(InputError, match="parts: expected some of xyz, rgb, found 'fusion'"):
        FUSION.of_parts({"fusion": None})
    with pytest.raises(InputError, match="expected numbers of the same parts, found xyz and rgb"):
        CalibratedFusion({"xyz": 1.0}, {"rgb": 1.0})


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_scales_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match=r"pixels\['xyz'\]: expected a finite number above 0"):
        CalibratedFusion({"xyz": 1.0}, {"xyz": bad})
