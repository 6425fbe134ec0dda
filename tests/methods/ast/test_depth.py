"""AST's depth and foreground: by hand, on clouds of a few pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmad_bank.errors import InputError
from mmad_bank.methods.ast.depth import Depth, centered, dilated, fill_gaps

ndimage = pytest.importorskip("scipy.ndimage")


def a_cloud(z: Tensor) -> Tensor:
    """A cloud (1, 3, H, W) of a depth (H, W); where that is 0 nothing was measured."""
    xyz = torch.ones(3, *z.shape) * (z != 0)
    xyz[2] = z
    return xyz[None]


def test_gaps_are_filled_with_the_mean_of_the_neighbors_that_are_known() -> None:
    z = torch.tensor([[0.0, 1, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])[None, None]
    once, known = fill_gaps(z, z > 0, passes=1)
    assert torch.allclose(once[0, 0, :, :4], torch.tensor([[2, 1, 2, 0], [2, 3, 2, 0], [2.5, 2.5, 3, 0]]))
    assert known[0, 0].int().tolist() == [[1, 1, 1, 0, 0, 0]] * 3
    thrice, known = fill_gaps(z, z > 0)
    assert known[0, 0, :, :5].all()
    assert not known[0, 0, :, 5].any()
    assert thrice[0, 0, 0, 3] == pytest.approx(2.0)  # of the second pass: the mean of the column of 2, 2 and 3
    assert torch.equal(thrice[0, 0, :2, :2][z[0, 0, :2, :2] > 0], z[z > 0]), "what was measured stays"


def test_a_point_below_the_origin_is_a_value_too() -> None:
    z = torch.tensor([[[[-0.2, 0.0, 0.4]]]])
    filled, _ = fill_gaps(z, torch.tensor([[[[True, False, True]]]]), passes=1)
    assert filled.flatten().tolist() == pytest.approx([-0.2, 0.1, 0.4])


def test_the_mean_is_that_of_the_measured_points() -> None:
    """Filled pixels have no say in it, the unit is a centimetre, and the background is 0."""
    z = torch.zeros(1, 1, 9, 9)
    z[..., 4, 4], z[..., 4, 5] = 0.50, 0.54
    found = centered(z, z > 0)
    assert found[0, 0, 4, 4:6].tolist() == pytest.approx([-2.0, 2.0], abs=1e-4)
    assert found[0, 0, 3, 3] == pytest.approx(-2.0, abs=1e-4)
    assert not found[0, 0, 0].any()
    assert torch.allclose(centered(z + 0.3 * (z > 0), z > 0), found, atol=1e-4), "the distance does not count"


@pytest.mark.parametrize("size", [4, 5, 8])
def test_the_foreground_grows_as_scipys(size: int) -> None:
    mask = torch.rand(1, 1, 20, 17, generator=torch.Generator().manual_seed(0)) > 0.97
    expected = ndimage.binary_dilation(mask[0, 0].numpy(), torch.ones(size, size).numpy())
    assert torch.equal(dilated(mask.float(), size)[0, 0] > 0, torch.from_numpy(expected))


def test_maps_lie_on_the_grid_channel_by_channel() -> None:
    """At 8 pixels per cell nothing is resized: the channels are the cell's pixels, row by row."""
    z = torch.zeros(24, 24)
    z[2:15, 4:20] = 0.3 + 0.01 * torch.rand(13, 16, generator=torch.Generator().manual_seed(0))
    depth, foreground = Depth((3, 3)).maps(a_cloud(z))
    own = centered(z[None, None], z[None, None] > 0)[0, 0]
    for row in range(3):
        for column in range(3):
            cell = own[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert torch.equal(depth[0, :, row, column], cell.flatten())
    there = ndimage.binary_dilation((z > 0).numpy(), torch.ones(8, 8).numpy())
    # Bilinear at an eighth of the size: the mean of the four pixels in the middle of a cell.
    expected = F.avg_pool2d(torch.from_numpy(there)[None, None].float()[..., 3:, 3:], 2, 8)[0]
    assert torch.equal(foreground, expected)
    assert foreground[0, 0, 0] == 1
    assert foreground[0, 2, 2] < 1
    rows = Depth((3, 3))(a_cloud(z))
    assert torch.equal(rows, depth.flatten(2).transpose(1, 2))


def test_larger_clouds_are_resized_and_the_foreground_may_be_everything() -> None:
    z = torch.zeros(64, 64)
    z[:, :28] = 0.5
    depth, foreground = Depth((4, 4)).maps(a_cloud(z))
    assert (depth.shape, foreground.shape) == ((1, 64, 4, 4), (1, 4, 4))
    # Columns 0 to 13 of 32 and three more: of the third cell 16, of which the middle (19 and 20) has nothing.
    assert foreground[0, 0].tolist() == [1, 1, 0, 0]
    assert Depth((4, 4)).maps(a_cloud(F.pad(z, (6, 0))[:, :64]))[1][0, 0].tolist() == [1, 1, 0.5, 0]  # to column 19
    _, everywhere = Depth((4, 4), foreground=False).maps(a_cloud(z))
    assert everywhere.min() == 1


def test_a_cloud_without_points_is_named() -> None:
    with pytest.raises(InputError, match=r"xyz\[1\]: expected measured points, found a cloud with none"):
        Depth((2, 2)).maps(torch.cat([a_cloud(torch.full((16, 16), 0.5)), torch.zeros(1, 3, 16, 16)]))
