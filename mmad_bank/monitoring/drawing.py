"""A picture of a monitor: scores over time, and the evidence of drift."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from mmad_bank._internal.checks import ArrayLike
from mmad_bank._internal.palette import BAD, BLUE, FAINT, INK, PALE, RULE, SOFT
from mmad_bank.calibration import Calibration
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.monitoring.drift import DriftMonitor

_LIMITS = (0.1, 0.01)
_LARGE = 1e100
_WINDOW = 50  # images that the running median is taken of


def check_drawing() -> None:
    """Say before the work that there is nothing to draw with.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "multimodal", "drawing the scores")


def figure(monitor: DriftMonitor, scores: ArrayLike, *, title: str = "") -> Any:
    """Draw the scores with limits of the calibration, and below them the evidence with its warning level.

    Args:
        monitor: Monitor that has taken the scores.
        scores: (T,) the scores, in the order of time.
        title: Title above the figure.

    Returns:
        A ``matplotlib.figure.Figure``, not shown and not saved.

    Raises:
        InputError: The monitor has not taken as many scores.
        MissingExtraError: matplotlib is not installed.
    """
    values = np.asarray(scores, dtype=float)
    if values.shape != (len(monitor),) or not len(values):
        raise InputError(f"scores: expected the monitor's, shape ({len(monitor)},), found {values.shape}")
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(11, 6.2), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(made)
    above, below = made.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_scores(above, values, monitor.calibration)
    _draw_evidence(below, monitor)
    if monitor.found is not None:
        since, image = monitor.found.since + 1, monitor.found.image + 1
        for axes in (above, below):
            axes.axvspan(since, image, color=BAD, alpha=0.08, linewidth=0, zorder=0)
            axes.axvline(image, color=BAD, linewidth=1.2, zorder=2)
        low, high = above.get_ylim()
        above.set_ylim(low, high + 0.2 * (high - low))  # room for the note
        word = "risen" if monitor.found.direction == "up" else "fallen"
        _note(above, image, f"scores have {word} since about image {since:,},\nfound at image {image:,}", len(values))
    if title:
        made.suptitle(title, fontsize=11, color=INK)
    return made


def _draw_scores(axes: Any, values: np.ndarray, calibration: Calibration) -> None:
    """Draw the scores as dots, their running median, and the limits of rates that the calibration can promise."""
    normal = calibration.scores.numpy()
    unit = _unit_of(max(float(np.abs(values).max()), float(np.abs(normal).max())))
    values = values / unit
    numbers = np.arange(1, len(values) + 1)
    size = float(np.clip(2500 / len(values), 2, 18))
    axes.scatter(numbers, values, s=size, color=FAINT, linewidths=0, zorder=1, label="score")
    if len(values) >= 2 * _WINDOW:
        middle = np.median(np.lib.stride_tricks.sliding_window_view(values, _WINDOW), axis=1)
        axes.plot(numbers[_WINDOW - 1 :], middle, color=BLUE, linewidth=1.8, label=f"median of the last {_WINDOW}")
    axes.axhline(float(np.median(normal / unit)), color=SOFT, linewidth=1, label="median when calibrated", zorder=2)
    styles = ((0, (4, 3)), (0, (1, 2)))
    for rate, style in zip(_LIMITS, styles, strict=True):
        if rate >= calibration.smallest_rate:
            limit = calibration.threshold(rate).score / unit
            label = f"{rate * 100:g} % of the normal images are above"
            axes.axhline(limit, color=SOFT, linewidth=1, linestyle=style, label=label, zorder=2)
    axes.set_ylabel("image score" if unit == 1 else f"image score / {unit:.0e}", color=INK)
    _style(axes)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=8.5, labelcolor=INK)


def _unit_of(largest: float) -> float:
    """Return the power of ten that scores are divided by, 1 but for such that sums of them, or an axis, overflow."""
    return 1.0 if largest < _LARGE else 10.0 ** math.floor(math.log10(largest))


def _draw_evidence(axes: Any, monitor: DriftMonitor) -> None:
    """Draw the evidence on a scale of powers of ten, and the level from which on drift is found."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    numbers = np.arange(len(monitor) + 1)
    axes.plot(numbers, [0.0, *monitor.evidence], color=INK, linewidth=1.6, zorder=3)
    level = monitor.warning_level
    axes.axhline(level, color=BAD, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.axhline(0, color=PALE, linewidth=1, zorder=0)
    word = f"warning from {10**level:,.4g} on: chance of a false one at most {monitor.false_warning_rate * 100:.3g} %"
    is_early = monitor.found is not None and monitor.found.image < len(monitor) / 2  # the curve is above on the right
    axes.annotate(
        word, (float(is_early), level), xytext=(-4 if is_early else 4, 4), textcoords="offset points", fontsize=8.5,
        color=BAD, xycoords=("axes fraction", "data"), ha="right" if is_early else "left",
    )  # fmt: skip
    low, high = min(monitor.evidence), max(monitor.evidence)
    axes.set_ylim(min(low, 0) - 0.3, max(high, level) + 0.25 * max(level, 1))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda power, _: _power(power)))
    axes.set_ylabel("evidence of drift", color=INK)
    axes.set_xlabel("image, in the order of time", color=INK)
    axes.set_xlim(0, len(monitor) + 1)
    _style(axes)


def _power(exponent: float) -> str:
    """Return a power of ten as an axis has it."""
    return f"{10**exponent:,.4g}" if exponent < 5 else f"1e{exponent:.0f}"


def _note(axes: Any, image: int, text: str, n_images: int) -> None:
    """Write about what was found, beside its line, on the side where there is room."""
    is_left = image > n_images / 2
    axes.annotate(
        text, (image, 0.97), xycoords=("data", "axes fraction"), xytext=(-6 if is_left else 6, 0),
        textcoords="offset points", ha="right" if is_left else "left", va="top", fontsize=9, color=BAD, zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
    )  # fmt: skip


def _style(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.grid(color=RULE, linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=FAINT)
