"""FPFH: the map's places and pooling, and its geometry on shapes where it is known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.features.fpfh import FPFH


def import_open3d() -> None:
    """Skip where Open3D, or a system library that it wants (libusb-1.0-0, libgl1), is not installed."""
    try:
        import open3d  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"Open3D cannot be loaded: {error}")


def surface(bump: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(48) / 480, torch.arange(60) / 480, indexing="ij")
    z = 0.5 + bump * torch.exp(-((x - 0.06) ** 2 + (y - 0.05) ** 2) / 2e-4)
    xyz = torch.stack([x + 0.01, y + 0.01, z], dim=-1)
    xyz[:, :10] = 0
    return xyz


def test_describes_measured_points_and_pools_them() -> None:
    import_open3d()
    extractor = FPFH((6, 10), normal_radius=0.01, feature_radius=0.02)
    clouds = torch.stack([surface(0.0), surface(0.01)])
    features = extractor(clouds)
    assert features.shape == (2, 60, 33) == (2, 60, extractor.dim)
    maps = extractor.describe(clouds[1])
    assert not maps[:, :, :10].any()
    # Each of the three histograms of a point sums to 100 for itself and to 100 for its neighbours.
    sums = maps[:, :, 10:].reshape(3, 11, -1).sum(1)
    assert torch.allclose(sums, torch.full_like(sums, 200.0), atol=1.0)
    expected = F.adaptive_avg_pool2d(F.avg_pool2d(maps[None], 3, 1), (6, 10))[0].flatten(1).T
    assert torch.allclose(features[1], expected, atol=1e-4)
    # Far from the bump the two surfaces are the same plane; on it they differ.
    change = (features[0] - features[1]).norm(dim=1).view(6, 10)
    assert change[2:4, 4:6].min() > 10 * change[5, 9:].max()


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(MissingExtraError, match=r"open3d.*multimodal"):
        FPFH()


@pytest.mark.parametrize("wrong", [{"normal_radius": 0}, {"feature_radius": np.inf}, {"normal_neighbors": 2}])
def test_bad_parameters_are_named(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        FPFH(**wrong)


def test_copies_of_points_are_no_neighbors() -> None:
    """An image enlarged to the nearest pixel has each point several times; it is described as it was before."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:20, :20] / 100
    cloud = np.stack([x + 1, y + 1, 1 + 0.02 * rng.random((20, 20))], axis=-1).astype(np.float32)
    cloud[4, 7] = 0
    twice = cloud.repeat(2, axis=0).repeat(2, axis=1)
    fpfh = FPFH(normal_radius=0.5, normal_neighbors=8, feature_radius=0.5, feature_neighbors=12)
    small, large = fpfh.describe(cloud), fpfh.describe(twice)
    assert float(small.abs().max()) > 0
    torch.testing.assert_close(large[:, ::2, ::2], small)
    torch.testing.assert_close(large[:, 1::2, 1::2], small)
