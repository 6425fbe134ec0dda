"""Metrics that have no value for some data: NaN with a warning, and why."""

from __future__ import annotations

import warnings


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for this data and came out as NaN; the message says why."""


def said(value: float, undefined: str | None) -> float:
    """Return a metric's value, with a warning at the caller of the function that calls this if it is undefined."""
    if undefined is not None:
        warnings.warn(undefined, UndefinedMetricWarning, stacklevel=3)
    return value
