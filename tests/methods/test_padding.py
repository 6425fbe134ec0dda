"""Patches of padding have no say in an image's score, whatever the rule."""

from __future__ import annotations

from functools import partial
from typing import get_args

import pytest
import torch

from mmad_bank import MemoryBank
from mmad_bank.methods.padding import score_in_windows
from mmad_bank.scoring import Reweight, top_mean

GRID = (20, 20)
WINDOWS = [(slice(0, 20), slice(0, 20)), (slice(5, 15), slice(0, 20)), (slice(5, 15), slice(0, 20))]


@pytest.mark.parametrize("rule", get_args(Reweight))
def test_padding_has_no_say(rule: Reweight) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, patches = MemoryBank(torch.rand(50, 6, generator=generator)), torch.rand(3, 400, 6, generator=generator)
    padded = patches.view(3, *GRID, 6).clone()
    padded[1:, :5], padded[1:, 15:] = 100.0, 100.0
    score = partial(bank.score, reweight=rule)
    found = score_in_windows(score, padded.flatten(1, 2), WINDOWS, GRID)
    for b, (rows, columns) in enumerate(WINDOWS):
        own = score(patches[b].view(*GRID, 6)[rows, columns].reshape(1, -1, 6))
        torch.testing.assert_close(found.image[b], own.image[0])


def test_the_top_is_one_percent_of_the_pictures_patches() -> None:
    """Of 200 patches in the picture two count, not four as of the grid's 400, where padding would repeat some."""
    bank = MemoryBank(torch.zeros(1, 1))
    patches = torch.arange(400.0).view(1, 400, 1)
    found = score_in_windows(partial(bank.score, reweight="top"), patches, WINDOWS[1:2], GRID)
    assert found.image.item() == pytest.approx((299 + 298) / 2)
    assert top_mean(found.patch).item() != pytest.approx(found.image.item())
