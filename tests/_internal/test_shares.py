"""Shares in words."""

from __future__ import annotations

import pytest

from mmad_bank._internal.shares import percent


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.05, "5 %"), (1 / 21, "4.76 %"), (0.0005, "0.05 %"), (0.125, "12.5 %"), (0, "0 %"), (1, "100 %")],
)
def test_a_share_has_three_digits_at_most(value: float, words: str) -> None:
    assert percent(value) == words
