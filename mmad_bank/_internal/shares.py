"""Shares in words, everywhere alike."""

from __future__ import annotations


def percent(share: float) -> str:
    """Return a share in percent, of three digits.

    Example:
        >>> percent(0.001), percent(1 / 31), percent(1)
        ('0.1 %', '3.23 %', '100 %')
    """
    return f"{100 * share:.3g} %"
