"""Charts as inline SVG: curves and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from mmad_bank._internal.palette import BAD, FAINT, PALE, SERIES

INK = "var(--ink)"
_RULE, _AXIS = "var(--rule)", "var(--faint)"
_WIDTH, _HEIGHT = 340.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 8.0, 8.0, 38.0

_LABEL = 18.0  # above each histogram

Curve = tuple[np.ndarray, np.ndarray]


def colour_of(results: Sequence[str], name: str) -> str:
    """Return a result's colour: ink for the first, the method's own, then one for each part."""
    place = list(results).index(name)
    return INK if place == 0 else SERIES[(place - 1) % len(SERIES)]


def key(colour: str) -> str:
    """Return the HTML of a legend's patch of colour."""
    return f'<span class="key" style="background:{colour}"></span>'


def curves(lines: Mapping[str, Curve], x_name: str, y_name: str, x_max: float = 1.0, *, chance: bool = False) -> str:
    """Draw curves from (0, 0) on, the first one on top and in ink.

    Args:
        lines: Values x and y by result, rising; empty ones are left out.
        x_name: Name of the x axis.
        y_name: Name of the y axis.
        x_max: Largest x to draw.
        chance: Whether to draw the diagonal of a guess.
    """
    parts = [_axes(x_name, y_name, x_max)]
    if chance:
        diagonal = f"M{_x(0, 1)} {_y(0)}L{_x(1, 1)} {_y(1)}"
        parts.append(f'<path d="{diagonal}" style="stroke:{_AXIS}" stroke-dasharray="2 4"/>')
    names = list(lines)
    for name in reversed(names):
        x, y = _until(*lines[name], x_max)
        if len(x):
            points = "L".join(f"{_x(a, x_max):.1f} {_y(b):.1f}" for a, b in _thinned(x, y))
            width = 2.4 if name == names[0] else 1.5
            stroke = f'style="stroke:{colour_of(names, name)}" stroke-width="{width}" stroke-linejoin="round"'
            parts.append(f'<path d="M{points}" {stroke}><title>{escape(name)}</title></path>')
    return _svg(_HEIGHT, parts, f"{y_name} over {x_name}")


def _axes(x_name: str, y_name: str, x_max: float) -> str:
    lines = []
    for i in range(5):
        level = i / 4
        colour = _AXIS if i == 0 else _RULE
        lines.append(f'<path d="M{_LEFT} {_y(level):.1f}H{_WIDTH - _RIGHT}" style="stroke:{colour}"/>')
        lines.append(_text(_LEFT - 7, _y(level) + 4, f"{level:g}", "end"))
        x = _x(level * x_max, x_max)
        lines.append(_text(x, _HEIGHT - _BOTTOM + 16, f"{level * x_max:g}", "end" if i == 4 else "middle"))
    lines.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 3, x_name, "middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="rotate(-90 9 {middle})" x="9" y="{middle}" text-anchor="middle"'
    return "".join([*lines, f"<text {turned}>{escape(y_name)}</text>"])


def _x(value: float, x_max: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / x_max


def _y(value: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value


def _until(x: np.ndarray, y: np.ndarray, x_max: float) -> Curve:
    """Cut a curve at ``x_max``."""
    if len(x) == 0 or x[-1] <= x_max:
        return x, y
    inside = x <= x_max
    return np.append(x[inside], x_max), np.append(y[inside], np.interp(x_max, x, y))


def _thinned(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """Leave out points in the middle of straight stretches, and of a very long curve all but some hundreds."""
    keep = np.ones(len(x), dtype=bool)
    keep[1:-1] = (np.diff(x[:-1]) * np.diff(y[1:])) != (np.diff(x[1:]) * np.diff(y[:-1]))
    x, y = x[keep], y[keep]
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), 400)).astype(int))
    return [(float(a), float(b)) for a, b in zip(x[chosen], y[chosen], strict=True)]


def histograms(groups: Mapping[str, Sequence[float]], threshold: float | None = None, n_bins: int = 26) -> str:
    """Draw the scores of each group as a histogram below the other, on one axis; the first group is the good one.

    Its histogram is repeated, grey, behind every other. A dashed line stands at the threshold, if there is one.
    """
    everything = np.concatenate([np.asarray(values, dtype=float) for values in groups.values()])
    everything = everything if threshold is None else np.append(everything, threshold)
    low, high = _round_range(float(everything.min()), float(everything.max()))
    edges = np.linspace(low, high, n_bins + 1)
    shares = {name: np.histogram(values, edges)[0] / max(len(values), 1) for name, values in groups.items()}
    top = max(float(share.max()) for share in shares.values())
    row = max((_HEIGHT - _TOP - _BOTTOM) / max(len(groups), 3), 36.0)
    height = _TOP + _BOTTOM + row * len(groups)
    names, parts = list(groups), []
    for number, name in enumerate(names):
        base = _TOP + row * (number + 1) - 1
        if number:
            parts.append(_bars(shares[names[0]], base, (row - _LABEL) / top, PALE, 0.55))
        title = f"{name}: {len(groups[name])} images"
        parts.append(_bars(shares[name], base, (row - _LABEL) / top, BAD if number else FAINT, 0.82, title))
        parts.append(f'<path d="M2 {base:.1f}H{_WIDTH - 2}" style="stroke:{_AXIS}" stroke-width="0.8"/>')
        parts.append(_text(2, base - row + 13, f"{_short(name)}  ({len(groups[name])})", "start"))
    if threshold is not None:
        x = 2 + (_WIDTH - 4) * (threshold - low) / (high - low)
        title = f"<title>above {threshold:.4g} an image is bad</title>"
        line = f'<path d="M{x:.1f} {_TOP}V{height - _BOTTOM}" stroke-dasharray="4 3" stroke-width="1.2"'
        parts.append(f'{line} style="stroke:{_AXIS}">{title}</path>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = f"{low + (high - low) * share:.4g}"
        parts.append(_text(2 + (_WIDTH - 4) * share, height - _BOTTOM + 16, value, anchor))
    parts.append(_text(_WIDTH / 2, height - 3, "image score", "middle"))
    return _svg(height, parts, "Image scores of good and defective images")


def _bars(shares: np.ndarray, base: float, scale: float, colour: str, opacity: float, title: str = "") -> str:
    width = (_WIDTH - 4) / len(shares)
    bars = "".join(
        f"M{2 + i * width + 0.5:.1f} {base:.1f}v{-share * scale:.1f}h{width - 1:.1f}v{share * scale:.1f}z"
        for i, share in enumerate(shares)
        if share
    )
    label = f"<title>{escape(title)}</title>" if title else ""
    return f'<path d="{bars}" fill="{colour}" fill-opacity="{opacity}" stroke="none">{label}</path>' if bars else ""


def _round_range(low: float, high: float) -> tuple[float, float]:
    """Return round numbers around a range."""
    if high <= low:
        return low - 0.5, high + 0.5
    step = 10.0 ** np.floor(np.log10((high - low) / 4))
    return float(np.floor(low / step) * step), float(np.ceil(high / step) * step)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    box = f'viewBox="0 0 {_WIDTH:g} {height:g}"'
    return f'<svg {box} fill="none" role="img" aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'
