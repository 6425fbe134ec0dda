"""Pictures of what was measured: accuracy over memory and over frames per second."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmad_bank._internal.palette import (
    AMBER,
    BAD,
    BLUE,
    BROWN,
    CYAN,
    FAINT,
    GREEN,
    INK,
    LIME,
    PALE,
    PINK,
    RULE,
    SLATE,
    VIOLET,
)
from mmad_bank._internal.shares import percent
from mmad_bank.errors import MissingExtraError
from mmad_bank.tuning.settings import By, Measured, non_dominated

_STYLES: dict[str, tuple[str, str]] = {
    "exact, auto": ("o", BLUE), "exact, float32": ("o", AMBER), "exact, half": ("o", GREEN),
    "exact, int8": ("o", VIOLET), "IVF,Flat": ("s", PINK), "HNSW": ("^", CYAN), "PQ": ("D", LIME),
    "IVF,PQ": ("v", BROWN),
}  # fmt: skip
_ERROR_TICKS = (0, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 4)
_LABEL_HEIGHT = 0.04  # of the axis
_OTHER_STYLES = (("P", SLATE), ("X", "#0f172a"), ("*", "#be123c"), ("<", "#4d7c0f"), (">", "#7e22ce"))


def figure(
    settings: Sequence[Measured],
    *,
    by: By = "error",
    recommended: Measured | None = None,
    memory: int | None = None,
    fps: float | None = None,
    title: str = "",
) -> Any:
    """Draw accuracy over memory and over frames per second, each with its front as a line.

    Args:
        settings: Settings of a :class:`Sweep`, or read back with :meth:`Measured.from_json`.
        by: Measure of accuracy, drawn upwards.
        recommended: Setting to be ringed.
        memory: Budget in bytes, for a line where it ends.
        fps: Budget in frames per second, likewise.
        title: Title above the figure.

    Returns:
        A ``matplotlib.figure.Figure``, not shown and not saved.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(11, 5.2), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(made)
    panels = made.subplots(1, 2, sharey=True)
    views: list[tuple[Callable[[Measured], float], str, float | None, int]] = [
        (lambda one: one.memory / 1e6, "memory, MB", None if memory is None else memory / 1e6, 1),
        (lambda one: one.fps, "frames per second", fps, -1),
    ]
    for axes, (value, name, limit, sign) in zip(panels, views, strict=True):
        _draw_panel(axes, settings, value, by, sign)
        _label_axes(axes, name, by)
        if by == "error" or sign > 0:  # over the frame rate, AUROC has many ratios in one place
            _label_ratios(axes, settings, value, by)
        if limit is not None:
            axes.axvline(limit, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        if recommended is not None:
            place = value(recommended), _height(recommended, by)
            axes.scatter(*place, s=190, facecolors="none", edgecolors=BAD, linewidths=2, zorder=5)
    panels[0].set_ylabel("error of the patch scores against all rows" if by == "error" else "AUROC of the images")
    handles, names = panels[0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=9, labelcolor=INK)
    if title:
        made.suptitle(title, fontsize=11, color=INK)
    return made


def check_drawing() -> None:
    """Say before the work that there is nothing to draw with."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "multimodal", "drawing the settings")


def _height(one: Measured, by: By) -> float:
    return one.cost(by) if by == "error" else 1 - one.cost(by)


def _kind(one: Measured) -> str:
    """Return the series of a setting: the precision of an exact search, or the kind of a FAISS index."""
    return f"exact, {one.precision}" if one.setting.is_exact else re.sub(r"\d+(x\d+(fs)?)?", "", one.index)


def _draw_panel(axes: Any, settings: Sequence[Measured], value: Callable[[Measured], float], by: By, sign: int) -> None:
    """Draw the points of each series, and the front of the two quantities behind them."""
    on_front = non_dominated([(sign * value(one), one.cost(by)) for one in settings])
    front = sorted((value(one), _height(one, by)) for one, on in zip(settings, on_front, strict=True) if on)
    axes.plot(*zip(*front, strict=True), color=PALE, linewidth=2.4, zorder=1, label="front")
    others = [name for name in dict.fromkeys(map(_kind, settings)) if name not in _STYLES]
    styles = _STYLES | {name: _OTHER_STYLES[i % len(_OTHER_STYLES)] for i, name in enumerate(others)}
    for name, (marker, colour) in styles.items():
        points = [(value(one), _height(one, by)) for one in settings if _kind(one) == name]
        if points:
            axes.scatter(
                *zip(*points, strict=True), s=34, marker=marker, color=colour, alpha=0.9, linewidths=0, zorder=3,
                label=name if name.startswith("exact") else f"FAISS {name}",
            )  # fmt: skip


def _label_axes(axes: Any, name: str, by: By) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    left, right = axes.dataLim.intervalx
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel(name, color=INK)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if right > 100 * left else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.dataLim.intervaly
    if by == "error":  # by its root: small errors are told apart, and 0 has a place
        axes.set_yscale("function", functions=(_signed_root, lambda y: y * abs(y)))
        top = max(1.12 * high, 1e-4)
        axes.set_ylim(-0.001 * top, top)
        axes.set_yticks([tick for tick in _ERROR_TICKS if tick <= top and not 0 < tick < top / 200])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    else:
        axes.set_ylim(low - max(0.08 * (1 - low), 0.005), 1 + max(0.08 * (1 - low), 0.005))
        axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= 1])
    axes.set_axisbelow(True)
    axes.grid(color=RULE, linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=FAINT)


def _signed_root(y: Any) -> Any:
    return np.sign(y) * np.sqrt(np.abs(y))


def _label_ratios(axes: Any, settings: Sequence[Measured], value: Callable[[Measured], float], by: By) -> None:
    """Write each ratio left of its exact settings and of what lies at their height (its own, if none is exact)."""
    from matplotlib.patheffects import withStroke

    roots = [float(_signed_root(_height(one, by))) for one in settings]
    for ratio in dict.fromkeys(one.ratio for one in settings):
        own = [i for i, one in enumerate(settings) if one.ratio == ratio]
        shown = [i for i in own if settings[i].setting.is_exact] or own
        beside = [i for i, root in enumerate(roots) if abs(root - roots[shown[0]]) <= _LABEL_HEIGHT * max(roots)]
        left = min(value(settings[i]) for i in (beside if by == "error" else shown))
        offset, aligned = ((-11, -3), "right") if by == "error" else ((0, 9), "center")
        axes.annotate(
            percent(ratio), (left, _height(settings[shown[0]], by)), xytext=offset, textcoords="offset points",
            ha=aligned, fontsize=8.5, color=INK, zorder=2, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
