"""Point feature alignment as one matrix against the plain way: interpolate, scatter, pool, pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmad_bank.errors import InputError
from mmad_bank.features import point_alignment
from mmad_bank.features.point_alignment import PointFeatureAlignment, measured_points, pool_to_grid, pooling_matrix

SIZE = (40, 52)


def organized(seed: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """A bumpy disc with drop-outs, off the middle, so that the grid's border is empty on one side."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size[0]) / 500, torch.arange(size[1]) / 500, indexing="ij")
    xyz = torch.stack([x + 0.01, y + 0.01, 0.4 + 0.01 * torch.rand(size, generator=generator)], dim=-1)
    xyz[(x - 0.06) ** 2 + (y - 0.05) ** 2 > 0.04**2] = 0
    xyz[torch.rand(size, generator=generator) < 0.05] = torch.nan
    return xyz


def groups(points: torch.Tensor, n: int, dim: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(points))
    return torch.randn(n, dim, generator=generator), points[torch.randperm(len(points), generator=generator)[:n]]


def plain(tokens, centers, points, pixels, grid, interpolation) -> torch.Tensor:
    """Eq. 1 in float64 at every point, the feature map, and both poolings."""
    distances = (points[:, None].double() - centers[None].double()).norm(dim=-1)
    weights = 1 / (distances + 1e-8)
    if interpolation == "three_nearest":
        nearest = distances.argsort(dim=1)[:, :3]
        kept = torch.zeros_like(distances).scatter_(1, nearest, 1.0)
        weights = kept / (distances**2 + 1e-8)
    features = (weights / weights.sum(1, keepdim=True)) @ tokens.double()
    maps = torch.zeros(SIZE[0] * SIZE[1], tokens.shape[1], dtype=torch.float64)
    maps[pixels] = features
    maps = maps.view(*SIZE, -1).permute(2, 0, 1)[None]
    return F.adaptive_avg_pool2d(F.avg_pool2d(maps, 3, 1), grid)[0].flatten(1).T


GRIDS = [(7, 7), (10, 13), (38, 50), (40, 52), (1, 3)]


@pytest.mark.parametrize("interpolation", ["all_centers", "three_nearest"])
@pytest.mark.parametrize("grid", GRIDS)
def test_one_matrix_equals_the_plain_way(grid: tuple[int, int], interpolation: str) -> None:
    points, pixels = measured_points(organized(0))
    tokens, centers = groups(points, 60)
    align = PointFeatureAlignment(grid, SIZE, interpolation=interpolation)
    result = align(tokens[None], centers[None], [points], [pixels])[0]
    assert result.dtype == torch.float32
    assert (
        result - plain(tokens, centers, points, pixels, grid, interpolation)
    ).abs().max() < 2e-6 * tokens.abs().max()


@pytest.mark.parametrize("together", [3, 16, 100])
@pytest.mark.parametrize("grid", GRIDS)
def test_several_rows_of_pixels_at_a_time(
    grid: tuple[int, int], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU."""
    points, pixels = measured_points(organized(0))
    tokens, centers = groups(points, 60)
    monkeypatch.setattr(point_alignment, "_rows_together", lambda device: together)
    result = PointFeatureAlignment(grid, SIZE, interpolation="all_centers")(
        tokens[None], centers[None], [points], [pixels]
    )[0]
    assert (
        result - plain(tokens, centers, points, pixels, grid, "all_centers")
    ).abs().max() < 2e-6 * tokens.abs().max()


@pytest.mark.parametrize("interpolation", ["all_centers", "three_nearest"])
def test_points_in_any_order_and_a_cloud_in_any_batch(interpolation: str) -> None:
    align = PointFeatureAlignment((10, 13), SIZE, interpolation=interpolation)
    clouds = [measured_points(organized(seed)) for seed in (1, 2)]
    clouds[1] = (clouds[1][0][:300], clouds[1][1][:300])
    parts = [groups(points, 50) for points, _ in clouds]
    shuffled = [torch.randperm(len(points), generator=torch.Generator().manual_seed(3)) for points, _ in clouds]
    together = align(
        torch.stack([tokens for tokens, _ in parts]),
        torch.stack([centers for _, centers in parts]),
        [points[order] for (points, _), order in zip(clouds, shuffled, strict=True)],
        [pixels[order] for (_, pixels), order in zip(clouds, shuffled, strict=True)],
    )
    for b, (points, pixels) in enumerate(clouds):
        alone = align(parts[b][0][None], parts[b][1][None], [points], [pixels])[0]
        assert torch.allclose(together[b], alone, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["all_centers", "three_nearest"])
def test_patches_without_points_are_exactly_zero(interpolation: str) -> None:
    points, pixels = measured_points(organized(0))
    tokens, centers = groups(points, 60)
    result = PointFeatureAlignment((10, 13), SIZE, interpolation=interpolation)(
        tokens[None], centers[None], [points], [pixels]
    )[0]
    occupied = torch.zeros(SIZE).view(-1).index_fill(0, pixels, 1.0).view(1, 1, *SIZE)
    occupied = F.adaptive_avg_pool2d(F.avg_pool2d(occupied, 3, 1), (10, 13)).flatten() > 0
    assert 0 < int(occupied.sum()) < occupied.numel()
    assert torch.equal((result != 0).any(dim=1), occupied)


def test_fewer_centres_than_neighbours() -> None:
    points, pixels = measured_points(organized(0))
    tokens, centers = groups(points, 2)
    align = PointFeatureAlignment((5, 5), SIZE)
    expected = plain(tokens, centers, points, pixels, (5, 5), "three_nearest")
    assert (align(tokens[None], centers[None], [points], [pixels])[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("size", "grid"), [((224, 224), (28, 28)), ((224, 200), (56, 56)), ((17, 9), (17, 9))])
def test_pooling_matrix_is_both_poolings(size: tuple[int, int], grid: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = F.adaptive_avg_pool2d(F.avg_pool2d(maps, 3, 1), grid)
    assert torch.allclose(pool_to_grid(maps, grid), expected, atol=1e-6)
    assert torch.allclose(pooling_matrix(size[0], grid[0]).sum(1), torch.ones(grid[0]))


def test_measured_points_leave_out_zeros_nan_and_infinity() -> None:
    xyz = torch.ones(2, 3, 3)
    xyz[0, 0, 1] = 0
    xyz[0, 1, 2] = torch.nan
    xyz[1, 2, 0] = torch.inf
    points, pixels = measured_points(xyz.numpy())
    assert pixels.tolist() == [2, 3, 4]
    assert torch.equal(points, torch.ones(3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measured_points(torch.zeros(4, 4, 3)), "xyz: expected measured points"),
        (lambda: measured_points(torch.zeros(4, 4, 2)), "xyz: expected"),
        (lambda: PointFeatureAlignment((0, 4)), "grid"),
        (lambda: PointFeatureAlignment(size=(2, 9)), "size"),
        (lambda: PointFeatureAlignment(interpolation="x"), "interpolation"),
        (
            lambda: PointFeatureAlignment((2, 2), (8, 8))(torch.ones(1, 4, 2), torch.ones(1, 5, 3), [], []),
            "centers: expected",
        ),
        (
            lambda: PointFeatureAlignment((2, 2), (8, 8))(torch.ones(1, 4, 2), torch.ones(1, 4, 3), [], []),
            "points: expected 1 clouds",
        ),
        (
            lambda: PointFeatureAlignment((2, 2), (8, 8)).weights(
                torch.ones(2, 3), torch.tensor([0, 64]), torch.ones(1, 3)
            ),
            "pixels: expected numbers of pixels",
        ),
        (
            lambda: PointFeatureAlignment((2, 2), (8, 8)).weights(
                torch.ones(2, 3), torch.tensor([0]), torch.ones(1, 3)
            ),
            "pixels: expected 2",
        ),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
