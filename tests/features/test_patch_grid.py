"""Patches brought to another grid, as PyTorch pools maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmad_bank.errors import InputError
from mmad_bank.features.patch_grid import repeats, to_grid


@pytest.mark.parametrize(("grid", "wanted"), [((4, 6), (8, 12)), ((4, 6), (7, 5)), ((8, 8), (4, 4)), ((3, 3), (3, 3))])
def test_patches_are_pooled_as_pytorch_pools_maps(grid: tuple[int, int], wanted: tuple[int, int]) -> None:
    maps = torch.randn(2, 5, *grid, generator=torch.Generator().manual_seed(0))
    expected = F.adaptive_avg_pool2d(maps, wanted).flatten(2).transpose(1, 2)
    patches = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(to_grid(patches, grid, wanted), expected)
    torch.testing.assert_close(to_grid(patches[1], grid, wanted), expected[1])
    if repeats(grid, wanted):
        assert {tuple(row) for row in to_grid(patches[0], grid, wanted).tolist()} == {
            tuple(row) for row in patches[0].tolist()
        }
    with pytest.raises(InputError, match="patches: expected"):
        to_grid(patches[:, :-1], grid, wanted)
