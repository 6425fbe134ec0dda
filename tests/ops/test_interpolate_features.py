from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mmad_bank.errors import InputError
from mmad_bank.ops import interpolate_features, reference
from mmad_bank.ops._torch.interpolate_features import interpolate_features as interpolate_by_torch

RULES = [{}, {"k": 1}, {"k": 4, "power": 1, "eps": 1e-6}, {"k": 7, "power": 3.5, "eps": 1e-3}]


def problem(kind: str, n: int = 700, g: int = 90, dim: int = 19) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    points = torch.randn(n, 3, generator=generator)
    if kind == "lattice":
        points = torch.randint(0, 5, (n, 3), generator=generator).float()
    elif kind == "duplicates":
        points = points[:20].repeat(n // 20, 1)
    elif kind == "zeros":
        points = torch.zeros(n, 3)
    elif kind == "metres":
        points = points * 0.01 + torch.tensor([0.0, 0.0, 0.5])
    centers = points[:: n // g][:g]  # so that some points lie on a centre
    return points, centers, torch.randn(len(centers), dim, generator=generator)


def within_rounding(result: torch.Tensor, expected: torch.Tensor, features: torch.Tensor, terms: int) -> bool:
    """Weights sum to 1, so a float32 sum of ``terms`` products errs by a few units of the largest feature."""
    assert result.dtype == torch.float32
    return bool(((result - expected).abs() <= (terms + 3) * 2.0**-24 * features.abs().max()).all())


def on_torch_path(points, centers, features, *, k=3, power=2, eps=1e-8, dense=False) -> torch.Tensor:
    return interpolate_by_torch(points, centers, features, k, power, eps, dense=dense)


@pytest.mark.parametrize("kind", ["normal", "lattice", "duplicates", "zeros", "metres"])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_reference(kind: str, rule: dict) -> None:
    points, centers, features = problem(kind)
    expected = reference.interpolate_features(points, centers, features, **rule)
    assert within_rounding(interpolate_features(points, centers, features, **rule), expected, features, 8)
    assert within_rounding(on_torch_path(points, centers, features, **rule), expected, features, 8)
    assert within_rounding(on_torch_path(points, centers, features, dense=True, **rule), expected, features, 8)


@pytest.mark.parametrize("k", [64, 65, 89, 90])
@pytest.mark.parametrize("power", [1, 2])
def test_many_neighbours_up_to_all_centres_as_in_the_paper(k: int, power: int) -> None:
    points, centers, features = problem("normal")
    expected = reference.interpolate_features(points, centers, features, k=k, power=power)
    assert within_rounding(interpolate_features(points, centers, features, k=k, power=power), expected, features, k)


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257])
@pytest.mark.parametrize("g", [1, 3, 15, 16, 17, 65])
def test_sizes_around_the_leaves_and_chunks(n: int, g: int) -> None:
    generator = torch.Generator().manual_seed(n * 100 + g)
    points, centers = torch.randn(n, 3, generator=generator), torch.randn(g, 3, generator=generator)
    features = torch.randn(g, 5, generator=generator)
    k = min(3, g)
    expected = reference.interpolate_features(points, centers, features, k=k)
    assert within_rounding(interpolate_features(points, centers, features, k=k), expected, features, 3)


def test_a_point_on_a_centre_follows_the_formula() -> None:
    centers = torch.tensor([[0.0, 0, 0], [2, 0, 0]])
    result = interpolate_features(centers[:1], centers, torch.tensor([[1.0], [0.0]]), k=2, power=2, eps=1.0)
    assert result.item() == pytest.approx(1.0 / (1.0 + 1.0 / 5.0))


def test_distant_points_do_not_leave_the_range() -> None:
    points = torch.tensor([[3e38, 3e38, 3e38], [-3e38, 0, 0], [1e-45, 0, 0]])
    centers = torch.tensor([[0.0, 0, 0], [1e38, 0, 0], [-3e38, -3e38, -3e38]])
    for power in (1, 2, 7):
        result = interpolate_features(points, centers, torch.ones(3, 4), k=3, power=power)
        assert torch.allclose(result, torch.ones(3, 4), rtol=1e-6)


def test_thread_counts_give_the_same_bits() -> None:
    arguments = problem("metres", n=3000)
    expected = interpolate_features(*arguments)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(interpolate_features(*arguments), expected)
    finally:
        torch.set_num_threads(before)


def test_takes_half_features_views_and_arrays() -> None:
    points, centers, features = problem("normal")
    for dtype in (torch.float16, torch.bfloat16):
        rounded = features.to(dtype)
        assert torch.equal(
            interpolate_features(points, centers, rounded), interpolate_features(points, centers, rounded.float())
        )
    expected = interpolate_features(points, centers, features)
    strided = torch.zeros(len(features), 40)
    strided[:, 3:22] = features
    assert torch.equal(interpolate_features(points.T.contiguous().T, centers, strided[:, 3:22]), expected)
    assert torch.equal(interpolate_features(points.double().numpy(), centers.numpy(), features.numpy()), expected)


def test_gradients_stop() -> None:
    points, centers, features = problem("normal")
    assert not interpolate_features(points, centers, features.requires_grad_()).requires_grad


@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_every_instruction_set_gives_the_same_bits(isa: str, tmp_path) -> None:
    points, centers, features = problem("metres")
    np.savez(tmp_path / "in.npz", points=points, centers=centers, features=features)
    code = (
        "import sys, numpy as np; from mmad_bank.ops import interpolate_features; d = np.load(sys.argv[1]);"
        "np.save(sys.argv[2], interpolate_features(d['points'], d['centers'], d['features']).numpy())"
    )
    paths = [str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", code, *paths], env={**os.environ, "MMAD_BANK_ISA": isa}, check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), interpolate_features(points, centers, features).numpy())


POINTS, CENTERS, FEATURES = torch.randn(10, 3), torch.randn(4, 3), torch.randn(4, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": POINTS[None]}, r"^points: expected 2-D array"),
        ({"points": POINTS[:, :2]}, r"^points: expected 3 columns"),
        ({"points": POINTS[:0]}, r"^points: expected at least one point"),
        ({"points": POINTS * torch.nan}, r"^points: row 0 holds NaN"),
        ({"centers": CENTERS[:, :2]}, r"^centers: expected 3 columns"),
        ({"centers": CENTERS[:0]}, r"^centers: expected at least one point"),
        ({"centers": CENTERS * torch.inf}, r"^centers: row 0 holds NaN or infinity"),
        ({"features": FEATURES[:3]}, r"^features: expected 4 rows, one per centre, found 3$"),
        ({"features": FEATURES[:, :0]}, r"^features: expected at least one row and one column"),
        ({"features": FEATURES.int()}, r"^features: expected floating-point"),
        ({"features": FEATURES * torch.nan}, r"^features: row 0 holds NaN"),
        ({"k": 5}, r"^k: expected 1 to 4 \(the number of centers\), found 5$"),
        ({"k": 0}, r"^k: expected 1 to 4"),
        ({"power": 0}, r"^power: expected a positive finite number"),
        ({"power": -1.0}, r"^power: expected a positive finite number"),
        ({"power": 8}, r"^power: expected a positive finite number of at most 7, found 8$"),
        ({"power": "2"}, r"^power: expected a number"),
        ({"eps": 0.0}, r"^eps: expected a positive finite number"),
        ({"eps": -1e-8}, r"^eps: expected a positive finite number"),
        ({"eps": float("nan")}, r"^eps: expected a positive finite number"),
        ({"eps": float("inf")}, r"^eps: expected a positive finite number"),
    ],
)
def test_bad_input_is_named(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        interpolate_features(**{"points": POINTS, "centers": CENTERS, "features": FEATURES, **changes})
