import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmad_bank import MemoryBank, scoring
from mmad_bank.errors import InputError


def numpy_image_score(star, distances, dim, rule):
    star, distances = np.float64(star), np.asarray(distances, np.float64)
    if rule == "m3dm":
        weight = 1 - np.exp(star / np.sqrt(dim)) / np.exp(distances[1:] / np.sqrt(dim)).sum()
    elif rule == "patchcore":
        weight = 1 - np.exp(distances[0]) / np.exp(distances).sum()
    else:
        weight = 1.0
    return weight * star


@pytest.mark.parametrize("rule", ["m3dm", "patchcore", "max"])
def test_image_score_is_the_formula(rule):
    generator = np.random.default_rng(0)
    star = generator.random(7) * 5
    others = star[:, None] + generator.random((7, 4)) * 3
    distances = np.concatenate([star[:, None], others], 1)
    found = scoring.image_score(torch.tensor(star), torch.tensor(distances), 768, rule)
    expected = [numpy_image_score(s, d, 768, rule) for s, d in zip(star, distances, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("rule", ["m3dm", "patchcore"])
def test_image_score_does_not_overflow_where_exp_does(rule):
    star, others = 50_000.0, [50_000.0, 50_001.0, 50_002.0]
    found = scoring.image_score(torch.tensor([star]), torch.tensor([others]), 1, rule)
    if rule == "m3dm":
        weight = 1 - 1 / (np.e + np.e**2)
    else:
        weight = 1 - 1 / (1 + np.e + np.e**2)
    assert found.item() == pytest.approx(weight * star, rel=1e-6)


def test_image_score_keeps_small_weights_that_one_minus_would_round_away():
    far = torch.tensor([[1.0, 1.0 + 1e-6]], dtype=torch.float64)
    found = scoring.image_score(far[:, 0], far, 1, "m3dm")
    assert found.item() == pytest.approx(-np.expm1(-1e-6), rel=1e-6)


@pytest.mark.parametrize("rule", ["m3dm", "patchcore"])
def test_a_neighborhood_of_one_leaves_the_score_as_it_is(rule):
    assert scoring.image_score(torch.tensor([3.0]), torch.tensor([[3.0]]), 4, rule).item() == 3.0


@pytest.mark.parametrize(("patches", "averaged"), [(1, 1), (99, 1), (100, 1), (101, 2), (784, 8), (1600, 16)])
def test_the_top_is_one_patch_in_a_hundred_rounded_up(patches, averaged):
    scores = np.random.default_rng(patches).random((3, patches)).astype(np.float32)
    expected = np.sort(scores, axis=1)[:, -averaged:].mean(1, dtype=np.float64).astype(np.float32)
    assert np.array_equal(scoring.top_mean(torch.from_numpy(scores)).numpy(), expected)


def test_the_top_is_taken_as_it_is():
    given, neighbors = torch.tensor([3.0]), torch.tensor([[3.0, 3.0, 3.0]])
    assert scoring.image_score(given, neighbors, 4, "top").item() == 3.0
    assert scoring.image_score(given, neighbors, 4, "top", divisor=1000.0).item() == pytest.approx(0.003)


def test_check_reweight():
    assert [scoring.check_reweight(rule, None) for rule in ("m3dm", "patchcore", "max", "top")] == [3, 9, 1, 1]
    assert scoring.check_reweight("patchcore", 1) == 1
    with pytest.raises(InputError, match="n_neighbors: expected 2 to"):
        scoring.check_reweight("m3dm", 1)
    with pytest.raises(InputError, match="reweight: expected one of m3dm, patchcore, max, top, found 'mean'"):
        scoring.check_reweight("mean", None)


@pytest.mark.parametrize(
    ("grid", "size", "sigma"),
    [
        ((28, 28), (224, 224), 4.0),
        ((4, 7), (30, 50), 2.5),
        ((28, 28), (10, 9), 4.0),
        ((1, 1), (5, 5), 4.0),
        ((3, 2), (3, 2), 1.0),
    ],
)
def test_anomaly_map_is_interpolation_then_scipys_gaussian(grid, size, sigma):
    ndimage = pytest.importorskip("scipy.ndimage")
    scores = torch.rand(3, grid[0] * grid[1], generator=torch.Generator().manual_seed(1))
    found = scoring.anomaly_map(scores, grid, size, sigma)
    enlarged = F.interpolate(scores.view(3, 1, *grid).double(), size=size, mode="bilinear", align_corners=False)[:, 0]
    expected = [ndimage.gaussian_filter(image, sigma, mode="reflect", truncate=4.0) for image in enlarged.numpy()]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=2e-6)


def test_anomaly_map_without_blur_is_interpolation():
    scores = torch.rand(2, 6)
    expected = F.interpolate(scores.view(2, 1, 2, 3), size=(9, 8), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(scoring.anomaly_map(scores, (2, 3), (9, 8), sigma=0), expected)


def test_anomaly_map_accepts_numpy_and_keeps_constants():
    found = scoring.anomaly_map(np.full((1, 4), 7.0, np.float32), (2, 2), (50, 60))
    torch.testing.assert_close(found, torch.full((1, 50, 60), 7.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(2, 5), (2, 3), (8, 8)), "patch_scores: expected 2 x 3 = 6 scores"),
        ((torch.rand(6), (2, 3), (8, 8)), "patch_scores: expected 2-D"),
        ((torch.rand(2, 6), (2, 3), (8, 0)), "size: expected 1 to"),
        ((torch.rand(2, 6), (2, 3), (8, 8), -1.0), "sigma: expected"),
        ((torch.rand(2, 6), (2, 3), (8, 8), float("nan")), "sigma: expected"),
        ((torch.zeros(2, 6, dtype=torch.int64), (2, 3), (8, 8)), "patch_scores: expected floating-point"),
    ],
)
def test_anomaly_map_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        scoring.anomaly_map(*arguments)


@pytest.mark.parametrize("scale", [1.0, 1e7, 1e9, 1e15])
@pytest.mark.parametrize("reweight", ["m3dm", "patchcore"])
def test_image_scores_of_long_vectors_are_those_of_float64(scale, reweight):
    rng = torch.Generator().manual_seed(0)
    bank = torch.randn(40, 8, generator=rng) * scale
    patches = torch.randn(6, 5, 8, generator=rng) * scale
    found = MemoryBank(bank).score(patches, reweight=reweight)
    gaps = (patches.double()[:, :, None] - bank.double()).square().sum(-1).sqrt()
    largest, where = gaps.min(2).values.max(1)
    for image, s in enumerate(largest):
        nearest = gaps[image, where[image]].argmin()
        around = (bank.double() - bank[nearest].double()).square().sum(1).argsort()[: 3 if reweight == "m3dm" else 9]
        spread = gaps[image, where[image], around]
        if reweight == "m3dm":
            weight = -torch.expm1(s * 8**-0.5 - torch.logsumexp(spread[1:] * 8**-0.5, 0))
        else:
            weight = 1 - torch.softmax(spread, 0)[0]
        assert found.image[image] >= 0
        torch.testing.assert_close(found.image[image].double(), s * weight.clamp(min=0), rtol=1e-5, atol=1e-5 * scale)


def test_maps_and_scores_do_not_depend_on_the_callers_autocast_or_default_dtype(callers_settings):
    patch_scores, bank = torch.rand(2, 49) * 100, torch.rand(50, 8)
    patches = torch.rand(2, 9, 8)
    right = scoring.anomaly_map(patch_scores, (7, 7), (28, 28)), *MemoryBank(bank).score(patches)
    with callers_settings:
        found = scoring.anomaly_map(patch_scores, (7, 7), (28, 28)), *MemoryBank(bank).score(patches)
    for one, other in zip(found, right, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("rule", ["m3dm", "patchcore", "max"])
def test_a_divisor_divides_the_largest_score_before_the_rule(rule: scoring.Reweight) -> None:
    """M3DM's published two-bank variant: the weight is of s*/1000, while |f* - m| stay as they are."""
    distances = torch.tensor([[3.0, 3.5, 4.0]])
    found = float(scoring.image_score(distances[:, 0], distances, 16, rule, divisor=1000.0))
    scale = 0.25 if rule == "m3dm" else 1.0
    others = np.exp(distances[0].numpy() * scale)[1 if rule == "m3dm" else 0 :].sum()
    weight = 1.0 if rule == "max" else 1 - np.exp(0.003 * scale) / others
    assert found == pytest.approx(0.003 * weight, rel=1e-6)
    bank = MemoryBank(torch.tensor([[0.0], [0.5], [1.0]]))
    whole, divided = (bank.score(torch.tensor([[[3.0]]]), reweight="max", divisor=n).image for n in (1.0, 1000.0))
    assert float(divided) == pytest.approx(float(whole) / 1000)
    with pytest.raises(InputError, match="divisor: expected a finite number above 0, found 0"):
        bank.score(torch.ones(1, 1, 1), divisor=0)
