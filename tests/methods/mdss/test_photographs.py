"""The photographs that a teacher learns where no others are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmad_bank.errors import MissingExtraError
from mmad_bank.methods.mdss.photographs import Photographs

skimage_data = pytest.importorskip("skimage.data")
datasets = pytest.importorskip("sklearn.datasets")


def test_views_are_pieces_of_the_pictures() -> None:
    views = Photographs(300)  # chelsea's shorter side, so that its views are not resized
    assert len(views) == 44
    for number in (4, 15, 26, 37):
        view = (views[number] * 255).round().to(torch.uint8).numpy().transpose(1, 2, 0)
        picture = skimage_data.chelsea()
        assert any(np.array_equal(picture[:, left : left + 300], view) for left in range(152)), number
    assert len({views[number].sum().item() for number in range(44)}) == 44


def test_views_are_the_same_every_time_and_of_one_size() -> None:
    first, again = Photographs(32), Photographs(32)
    for number in range(44):
        assert first[number].shape == (3, 32, 32)
        assert first[number].dtype == torch.float32
        assert 0 <= first[number].min() < first[number].max() <= 1
        assert torch.equal(first[number], again[number])
    gray = first[3]  # brick
    assert torch.equal(gray[0], gray[1])
    assert not torch.equal(first[0][0], first[0][1])  # china
    with pytest.raises(IndexError):
        first[44]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match="scikit-learn"):
        Photographs(32)
