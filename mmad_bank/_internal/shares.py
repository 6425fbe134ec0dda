"""Shares in words and from words, everywhere alike."""

from __future__ import annotations


def percent(share: float) -> str:
    """Return a share in percent, of three digits.

    Example:
        >>> percent(0.001), percent(1 / 31), percent(1)
        ('0.1 %', '3.23 %', '100 %')
    """
    return f"{100 * share:.3g} %"


def number_of(text: str) -> float:
    """Return the number that a word says, in percent or plainly.

    Raises:
        ValueError: It says none.

    Example:
        >>> number_of("10%"), number_of("0.1")
        (0.1, 0.1)
    """
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)
