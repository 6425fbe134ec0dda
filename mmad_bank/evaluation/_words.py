"""Metrics and verdicts in words, for the tables of results."""

from __future__ import annotations

from collections.abc import Iterator

from mmad_bank._internal.shares import percent
from mmad_bank.evaluation.decisions import Decisions


def word(value: float | None) -> str:
    """Return a metric in words: three digits, a dash where it is undefined."""
    return "–" if value is None else f"{value:.3f}"


def remarks_on(category: str, one: Decisions) -> Iterator[str]:
    """Yield what a reader of the verdicts must know."""
    yield f"{category}: verdicts are calibrated on {one.held_out} {one.origin}"
    if one.threshold.extrapolated:
        yield f"{category}: * the rate is extrapolated by a fitted tail; {one.held_out} {one.unit} can promise" + (
            f" {percent(1 / (one.held_out + 1))} and more"
        )
    if one.held is False:
        good = f"the good {one.unit} are unlike the held-out ones"
        yield f"{category}: the promised false-alarm rate did not hold: {good}"


def cells_of(one: Decisions) -> list[str]:
    """Return the cells of a row of verdicts."""
    rate, interval = one.false_alarm_rate, one.interval
    return [
        f"{one.threshold.score:.4g}",
        percent(one.threshold.rate) + ("*" if one.threshold.extrapolated else ""),
        "–" if rate is None else some_of(one.false_alarms, one.false_alarms + one.passed),
        "–" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}",
        "–" if one.recall is None else some_of(one.found, one.found + one.missed),
        word(one.precision), word(one.f1), word(one.best_f1),
    ]  # fmt: skip


def some_of(some: int, number: int) -> str:
    """Return a number of images among others, with its share."""
    return f"{some} of {number} ({percent(some / number)})"
