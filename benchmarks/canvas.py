"""Drawing: one style, files that are the same for the same figures, and labels that keep out of each other's way."""

from __future__ import annotations

import itertools
import math
import random
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmad_bank._internal.files import replacing
from mmad_bank._internal.palette import FAINT, INK, RULE, SOFT
from mmad_bank.errors import MissingExtraError

DPI, WIDTH = 200, 7.0  # 1400 pixels wide: readable at half of that
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "text.color": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "grid.color": RULE, "grid.linewidth": 0.8, "legend.frameon": False,
    "legend.fontsize": 8,
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this style, whatever the user's own settings of matplotlib are.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import style
    except ImportError as error:
        raise MissingExtraError("matplotlib", "multimodal", "drawing figures") from error
    with style.context(["default", STYLE]):
        yield


def empty(height: float) -> Any:
    """Return an empty figure of the common width; its height is in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, without a word on when or by what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=figure.dpi, metadata={"Software": None})


_LETTERS = 16  # of the lines below a title, in an inch


def head(figure: Any, title: str, *lines: str) -> None:
    """Write a title and lines below it at the figure's upper left, wrapped to its width, and leave room for them."""
    width, height = figure.get_size_inches()
    lines = tuple(part for line in lines for part in textwrap.wrap(line, int(_LETTERS * width)))
    figure.text(0.1 / width, 1 - 0.1 / height, title, fontsize=11, fontweight="bold", va="top")
    for number, line in enumerate(lines):
        figure.text(0.1 / width, 1 - (0.32 + 0.16 * number) / height, line, fontsize=8, color=SOFT, va="top")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (0.4 + 0.16 * len(lines)) / height))


def log_ticks(axis: Any, limits: tuple[float, float], most: int = 8) -> None:
    """Give a logarithmic axis plain numbers as ticks, at most so many (but one per decade)."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    first, last = (math.floor(math.log10(limit)) for limit in limits)
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
        if len(ticks) <= most:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_locator(NullLocator())


def plain(value: float) -> str:
    """Return a tick's value in few letters.

    Example:
        >>> plain(0.05), plain(700.0), plain(20000)
        ('0.05', '700', '20k')
    """
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Dot:
    """A dot that wants a label: where it is in data, its radius in points, what to write."""

    x: float
    y: float
    radius: float
    text: str
    colour: str


Point = tuple[float, float]
Box = tuple[float, float, float, float]
_DIRECTIONS = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (0, 180, 90, 270, 45, 135, 315, 225)]
_DISTANCES = (4.0, 9.0, 18.0, 30.0, 44.0, 60.0)  # points from the dot's rim


@dataclass(frozen=True)
class _Choice:
    """A place for a label: its box, points of the line that joins it to its dot, and what the distance costs."""

    box: Box
    line: tuple[Point, ...]
    cost: float


def label_dots(axes: Any, dots: Sequence[Dot], *, size: float = 8) -> None:
    """Write every dot's label beside it where it covers no other label and no dot, joined by a line if that is far off.

    Call it when the figure's limits and layout are final: it computes in pixels.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    scale = DPI / 72
    style = {"fontsize": size, "ha": "center", "va": "center", "zorder": 5, "path_effects": _halo()}
    texts = [axes.text(0, 0, dot.text, color=dot.colour, **style) for dot in dots]
    sizes = [(box.width, box.height) for box in (text.get_window_extent() for text in texts)]
    centres = [tuple(axes.transData.transform((dot.x, dot.y))) for dot in dots]
    radii = [dot.radius * scale for dot in dots]
    circles = [_around(centre, 1.8 * radius, 1.8 * radius) for centre, radius in zip(centres, radii, strict=True)]
    ways = list(itertools.product(_DISTANCES, _DIRECTIONS))
    options = [
        [_choice(centre, radius, extent, *way, scale) for way in ways]
        for centre, radius, extent in zip(centres, radii, sizes, strict=True)
    ]
    for text, choice in zip(texts, _arrange(options, circles, axes.get_window_extent().extents), strict=True):
        x0, y0, x1, y1 = choice.box
        text.set_position(axes.transData.inverted().transform(((x0 + x1) / 2, (y0 + y1) / 2)))
        if choice.line:
            ends = axes.transData.inverted().transform([choice.line[0], choice.line[-1]])
            axes.plot(*ends.T, color=INK, linewidth=0.6, zorder=4, marker="o", markersize=1.5, markevery=[0])


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="white")]


def _around(centre: Point, width: float, height: float) -> Box:
    return centre[0] - width / 2, centre[1] - height / 2, centre[0] + width / 2, centre[1] + height / 2


def _choice(centre: Point, radius: float, extent: Point, distance: float, way: Point, scale: float) -> _Choice:
    """Return the place in one direction and distance of a dot."""
    reach = radius + distance * scale
    x = centre[0] + way[0] * reach + round(way[0], 6) * extent[0] / 2
    y = centre[1] + way[1] * reach + round(way[1], 6) * extent[1] / 2
    box = _around((x, y), *extent)
    line = () if distance == _DISTANCES[0] else _line(centre, box, 2 * scale)
    return _Choice(box, line, distance * scale * extent[1] + _DIRECTIONS.index(way))


def _line(centre: Point, box: Box, gap: float) -> tuple[Point, ...]:
    """Return points on the way from a dot's centre to just before a box."""
    x, y = min(max(centre[0], box[0]), box[2]), min(max(centre[1], box[1]), box[3])
    share = max(0.0, 1 - gap / (math.hypot(x - centre[0], y - centre[1]) or 1))
    steps = [share * step / 9 for step in range(10)]
    return tuple((centre[0] + (x - centre[0]) * t, centre[1] + (y - centre[1]) * t) for t in steps)


def _arrange(options: Sequence[Sequence[_Choice]], circles: Sequence[Box], frame: Sequence[float]) -> list[_Choice]:
    """Choose a place for every label: the cheapest given all others, in several orders; the best of these counts."""
    shuffled = random.Random(0)
    tried = []
    for _ in range(8):
        order = list(range(len(options)))
        shuffled.shuffle(order)
        tried.append(_settle(order, options, circles, frame))
    _, best = min(tried, key=lambda one: one[0])
    return [best[i] for i in range(len(options))]


def _settle(
    order: Sequence[int], options: Sequence[Sequence[_Choice]], circles: Sequence[Box], frame: Sequence[float]
) -> tuple[float, dict[int, _Choice]]:
    """Place one label after the other, then move each while that helps; return the cost of all and their places."""
    chosen: dict[int, _Choice] = {}
    costs: dict[int, float] = {}
    for _ in range(10):
        before = dict(chosen)
        for i in order:
            others = [choice for j, choice in chosen.items() if j != i]
            foreign = [circle for j, circle in enumerate(circles) if j != i]
            prices = [option.cost + _trouble(option, others, foreign, frame) for option in options[i]]
            costs[i] = min(prices)
            chosen[i] = options[i][prices.index(costs[i])]
        if chosen == before:
            break
    return sum(costs.values()), chosen


def _trouble(option: _Choice, others: Sequence[_Choice], circles: Sequence[Box], frame: Sequence[float]) -> float:
    """Return the area that a place covers of others, of dots and outside the frame; lines that cross cost as well."""
    box = option.box
    area = (box[2] - box[0]) * (box[3] - box[1])
    covered = area - _overlap(box, frame) + sum(_overlap(box, circle, 2.0) for circle in circles)
    covered += sum(_overlap(box, other.box, 4.0) for other in others)
    crossed = sum(_meets(option.line, other.box) or _meets(other.line, box) for other in others)
    over_dots = sum(_meets(option.line, circle) for circle in circles)
    return 20 * covered + 10 * area * crossed + 0.5 * area * over_dots


def _meets(line: Sequence[Point], box: Box) -> bool:
    return any(box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in line)


def _overlap(a: Sequence[float], b: Sequence[float], margin: float = 0.0) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + margin
    height = min(a[3], b[3]) - max(a[1], b[1]) + margin
    return max(0.0, width) * max(0.0, height)


def label_ends(axes: Any, dots: Sequence[Dot], *, size: float = 8) -> None:
    """Write the labels of lines' last points right of the axes, as near to their heights as their own height allows.

    The axes give up as much of their width as the labels take. Call it when the limits are final.
    """
    figure = axes.figure
    scale = DPI / 72
    texts = [axes.text(0, 0, dot.text, fontsize=size, color=dot.colour, va="center") for dot in dots]
    boxes = [text.get_window_extent() for text in texts]
    left, bottom, right, top = figure.get_layout_engine().get()["rect"]
    room = (max(box.width for box in boxes) + 8 * scale) / figure.bbox.width
    for text in texts:
        text.set_in_layout(False)
    figure.get_layout_engine().set(rect=(left, bottom, right - room, top))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    points = axes.transData.transform([(dot.x, dot.y) for dot in dots])
    edge = axes.get_window_extent().x1 + 4 * scale
    heights = spread_out([float(y) for _, y in points], 1.05 * max(box.height for box in boxes))
    for text, height, point, dot in zip(texts, heights, points, dots, strict=True):
        text.set_position(axes.transData.inverted().transform((edge, height)))
        ends = axes.transData.inverted().transform([(point[0] + 3 * scale, point[1]), (edge - 2 * scale, height)])
        axes.plot(*ends.T, color=dot.colour, linewidth=0.6, alpha=0.6, clip_on=False)


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Return places at least ``gap`` apart, in the same order, near the given ones: groups that touch share a centre.

    Example:
        >>> spread_out([0.0, 10.0, 10.5], 2.0)
        [0.0, 9.25, 11.25]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _first(groups[-1], places, gap) - _last(groups[-2], places, gap) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    found = dict.fromkeys(order, 0.0)
    for group in groups:
        for number, i in enumerate(group):
            found[i] = _first(group, places, gap) + number * gap
    return [found[i] for i in range(len(places))]


def _first(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return sum(places[i] for i in group) / len(group) - gap * (len(group) - 1) / 2


def _last(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return _first(group, places, gap) + gap * (len(group) - 1)
