"""The figures of docs/benchmarks/, drawn from result files alone: nothing is measured here.

:func:`draw` writes a PNG for every kind of figure whose part is among the results, the same bytes for the same results.
No figure mixes speeds of two machines.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import published
from canvas import DPI, WIDTH, Dot, empty, head, label_dots, label_ends, log_ticks, save, styled
from common import machine_slug

from mmad_bank import tuning
from mmad_bank._internal import sections
from mmad_bank._internal.palette import BLUE, CYAN, GREEN, OCHRE, ORANGE, PINK, SLATE, SOFT, VIOLET, section_colour
from mmad_bank.evaluation import FUSED

Result = Mapping[str, Any]
Row = Mapping[str, Any]

FAMILIES = {
    "M3DM": BLUE, "CFM": ORANGE, "PatchCore": GREEN, "BTF": OCHRE, "LSFA": VIOLET, "MDSS": PINK,
    "ShapeGuided": CYAN, "AST": SLATE,
}  # fmt: skip
"""A method's colour; its variants share it."""
PROGRAMS = {
    "mmad-bank": BLUE, "mmad-bank, exact": BLUE, "field's loop": ORANGE, "faiss IndexFlatL2": ORANGE,
    "faiss IVF, nprobe 1": "#86d5b5", "faiss IVF, nprobe 8": "#34a77c", "faiss IVF, nprobe 32": "#065f46",
    "faiss HNSW": PINK, "hnswlib (approximate)": VIOLET, "usearch (approximate)": OCHRE,
}  # fmt: skip

ACCURACIES = {"image_auroc": "I-AUROC", "aupro": "AUPRO@30"}
"""Metrics drawn over the speed: the key in the accuracy table, and its name. The index shows the first one."""
SAME_SETUP = {
    "M3DM, 8-bit banks": ("M3DM", FUSED),
    "M3DM, RGB bank": ("M3DM", "rgb"),
    "M3DM, point bank": ("M3DM", "xyz"),
    "M3DM, fusion bank": ("M3DM", "fusion"),
    "M3DM, two banks": ("M3DM, two banks added", FUSED),
}
"""The accuracy of a method of the inference benchmark, where it is not the one under its name: method and result."""

PUBLISHED_STEM = "published"
SPEED_TABLE = "cfm-5"
"""The published table of frames per second, memory and accuracy."""


@dataclass(frozen=True)
class Accuracy:
    """Measured accuracy of a method's result: mean and spread by key, and the table that says of what."""

    values: Mapping[str, tuple[float, float]]
    source: str


Accuracies = Mapping[tuple[str, str], Accuracy]
"""Accuracies by method and result."""


@dataclass(frozen=True)
class Drawn:
    """A figure that was written.

    Attributes:
        path: File of the PNG.
        alt: Words for what it shows.
        owner: The result that it stands with: benchmark, :func:`place` and part.
        main: Whether the index of the pages shows it.
    """

    path: Path
    alt: str
    owner: tuple[str, str, str]
    main: bool


@dataclass(frozen=True)
class Plan:
    """A figure to draw: its file's stem, what makes it, what it shows in words, and whether the index shows it."""

    stem: str
    make: Callable[[], Any]
    alt: str
    main: bool = False


def place(values: Result) -> str:
    """Return where a result was measured, fit for a file's name: the machine, and a device that is not its CPU."""
    gpu = _gpu(values)
    return machine_slug(values["machine"]) + (f"-{_slug(gpu)}" if gpu else "")


def machine_words(values: Result) -> str:
    """Return where a result was measured, in a few words."""
    machine = values["machine"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return _gpu(values) or f"{machine['cpu']}, {threads} ({machine['isa']})"


def _gpu(values: Result) -> str | None:
    """Return the name of the device that was measured if it is not the CPU."""
    device = values.get("settings", {}).get("device") or "cpu"
    return None if device == "cpu" else str((values["machine"].get("gpu") or [device])[0])


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def draw(results: Sequence[Result], folder: Path) -> list[Drawn]:
    """Draw all figures that the results have the parts for.

    Args:
        results: Results that have each part once per machine.
        folder: Folder to write them to; made if it is not there.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    accuracies = read_accuracies(results)
    drawn: dict[Path, Drawn] = {}
    for values in results:
        for part in values["parts"]:
            for plan in _plans(values, part, accuracies):
                path = folder / f"{plan.stem}.png"
                if path not in drawn:
                    with styled():
                        save(plan.make(), path)
                    drawn[path] = Drawn(path, plan.alt, owner(values, part), plan.main)
    return list(drawn.values())


def owner(values: Result, part: str) -> tuple[str, str, str]:
    """Return what a figure stands with: benchmark, place and part."""
    return values["benchmark"], place(values), part


def _plans(values: Result, part: str, accuracies: Accuracies) -> Iterator[Plan]:
    tables, where = values["parts"][part], machine_words(values)
    makers: dict[str, Callable[[], Iterator[Plan]]] = {
        "inference": lambda: _inference(tables[0], where, accuracies),
        "scaling": lambda: _scaling(tables[0]["rows"], tables[1]["rows"], where),
        "tradeoff": lambda: _tradeoff(tables[0]["rows"], where),
    }
    for plan in makers[part]() if part in makers else ():
        yield plan if plan.stem == PUBLISHED_STEM else replace(plan, stem=f"{plan.stem}-{place(values)}")


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy, speed and memory


def read_accuracies(results: Sequence[Result]) -> dict[tuple[str, str], Accuracy]:
    """Return the accuracies by method and result, of all results that have the part "accuracy".

    Where several have a method, the one over the most data sets counts, and the newest among these.
    """
    found = {}
    for values in sorted(results, key=lambda one: (one.get("settings", {}).get("seeds", 0), one["date"])):
        for table in values["parts"].get("accuracy", [])[:1]:
            for row in table["rows"]:
                known = {key: _mean_and_spread(row[key]) for key in ACCURACIES if row.get(key)}
                found[row["method"], row["result"]] = Accuracy(known, table["title"])
    return found


def _mean_and_spread(words: str) -> tuple[float, float]:
    mean, _, spread = words.partition("±")
    return float(mean), float(spread or 0)


def accuracy_of(method: str, accuracies: Accuracies) -> Accuracy | None:
    """Return the accuracy of a method of the inference benchmark; None if nobody measured it."""
    setup = ("M3DM", FUSED) if method.startswith("M3DM, plain") else (method, FUSED)
    return accuracies.get(SAME_SETUP.get(method, setup))


def _inference(table: Mapping[str, Any], where: str, accuracies: Accuracies) -> Iterator[Plan]:
    rows = table["rows"]
    setup = table["title"].partition(": ")[2]
    speed = f"Speed and memory: {where}, one image at a time" + (f"; {setup}" if setup else "")
    main = True
    for key, name in ACCURACIES.items():
        known = [(row, accuracy_of(row["method"], accuracies)) for row in rows]
        found = [(row, own) for row, own in known if own is not None and key in own.values]
        if found:
            dots = [{**row, "y": own.values[key][0]} for row, own in found]
            spread = statistics.median(own.values[key][1] for _, own in found)
            source = "; ".join(dict.fromkeys(own.source for _, own in found))
            lines = [speed, source + (f". Median deviation over seeds: {spread:.3f}" if spread else ""), AREA]
            alt = f"{name} over frames per second of {_counted(dots)}; the area of a dot is the method's memory"
            make = partial(_bubbles, dots, name, f"{name}, speed and memory", lines)
            yield Plan(f"accuracy-{_slug(name)}", make, alt, main)
            main = False
    if main:
        alt = f"Memory over frames per second of {_counted(rows)}"
        yield Plan("speed-and-memory", partial(_speed_and_memory, rows, speed), alt, main)
    yield Plan("stages", partial(_stages, rows, speed), f"Time per image by stage of {_counted(rows)}")
    table = published.table(SPEED_TABLE)
    paper = f"{table.source} (CVPR 2024), table {table.number}"
    source = f"{paper}: {table.machine}. Accuracy on MVTec 3D-AD, as published"
    make = partial(_bubbles, _published_dots(), "I-AUROC", "As published", [source, AREA], hollow=True)
    yield Plan(PUBLISHED_STEM, make, f"I-AUROC over frames per second as published: {source}")


def _published_dots() -> list[dict[str, Any]]:
    return [
        {
            "method": row.label, "fps": row.figures["fps"].mean, "memory_bytes": megabytes * 1e6,
            "y": row.figures["image_auroc"].mean,
        }
        for row in published.table(SPEED_TABLE).rows
        if (megabytes := row.figures["memory_mb"].mean) is not None
    ]  # fmt: skip


AREA = "Area of a dot: memory of networks, banks and activations"


def _counted(rows: Sequence[Row]) -> str:
    return f"{len(rows)} method{'s' if len(rows) > 1 else ''}"


def family_colour(method: str) -> str:
    """Return a method's colour, the same in all figures."""
    return FAMILIES.get(re.split(r"[,-]", method)[0].strip(), SOFT)


def _megabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


_LARGEST = 18.0  # points: the radius of the dot with the most memory


def _bubbles(rows: Sequence[Row], accuracy: str, title: str, lines: Sequence[str], *, hollow: bool = False) -> Any:
    """Draw accuracy over frames per second; the area of a dot is the memory."""
    figure = empty(4.6)
    axes = figure.add_subplot()
    most = max(row["memory_bytes"] for row in rows)
    dots = []
    for row in sorted(rows, key=lambda row: -row["memory_bytes"]):  # small dots over large ones
        radius, colour = _LARGEST * math.sqrt(row["memory_bytes"] / most), family_colour(row["method"])
        fill = {"facecolor": "none" if hollow else f"{colour}b0", "edgecolor": colour if hollow else "white"}
        axes.scatter(row["fps"], row["y"], s=math.pi * radius**2, linewidth=1.2 if hollow else 0.8, zorder=2, **fill)
        text = f"{row['method']} · {_megabytes(row['memory_bytes'])}"
        dots.append(Dot(row["fps"], row["y"], radius, text, colour))
    _set_speed_axis(axes, [row["fps"] for row in rows])
    low, high = min(row["y"] for row in rows), max(row["y"] for row in rows)
    room = 0.2 * (high - low) or 0.01
    axes.set_ylim(low - room, high + room)
    axes.set_ylabel(accuracy)
    axes.grid(True, axis="y")
    head(figure, title, *lines)
    label_dots(axes, dots)
    return figure


def _set_speed_axis(axes: Any, speeds: Sequence[float]) -> None:
    low, high = min(speeds) / 1.8, max(speeds) * 1.8
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, (low, high))
    axes.set_xlabel("frames per second")


def _speed_and_memory(rows: Sequence[Row], subtitle: str) -> Any:
    """Draw memory over frames per second, where no accuracy was measured."""
    figure = empty(4.2)
    axes = figure.add_subplot()
    dots = []
    for row in rows:
        colour = family_colour(row["method"])
        axes.scatter(row["fps"], row["memory_bytes"] / 1e6, s=60, color=colour, edgecolor="white", zorder=2)
        dots.append(Dot(row["fps"], row["memory_bytes"] / 1e6, 4.0, row["method"], colour))
    _set_speed_axis(axes, [row["fps"] for row in rows])
    sizes = [row["memory_bytes"] / 1e6 for row in rows]
    axes.set_yscale("log")
    axes.set_ylim(min(sizes) / 1.5, max(sizes) * 1.5)
    log_ticks(axes.yaxis, axes.get_ylim())
    axes.set_ylabel("memory, MB")
    axes.grid(True, axis="y")
    head(figure, "Speed and memory", subtitle)
    label_dots(axes, dots)
    return figure


def _stages(rows: Sequence[Row], subtitle: str) -> Any:
    """Draw the time per image as bars, by stage; the fastest method on top."""
    figure = empty(1.5 + 0.25 * len(rows))
    axes = figure.add_subplot()
    ordered = sorted(rows, key=lambda row: row["median_s"], reverse=True)
    names = _stage_names(rows)
    longest = max(sum(row["stages"].values()) for row in rows)
    for number, row in enumerate(ordered):
        left = 0.0
        for name in names:
            seconds = row["stages"].get(name, 0.0)
            axes.barh(number, seconds, left=left, height=0.68, color=section_colour(name), label=name)
            left += seconds
        words = f"{_seconds(row['median_s'])} · {row['fps']:.{2 if row['fps'] < 10 else 1}f} fps"
        axes.text(left + 0.01 * longest, number, words, va="center", fontsize=7.5, color=SOFT)
    axes.set_yticks(range(len(ordered)), [row["method"] for row in ordered])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlim(0, 1.2 * longest)
    axes.set_xlabel("seconds per image, medians by stage")
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    figure.legend([first[name] for name in names], names, loc="outside lower left", ncols=4, handlelength=1.0)
    head(figure, "Where the time goes", subtitle)
    return figure


def _stage_names(rows: Sequence[Row]) -> list[str]:
    """Return the stages in about the order in which the methods pass them, "other" last."""
    places: dict[str, list[float]] = {}
    for row in rows:
        own = [name for name in row["stages"] if name != sections.OTHER]
        for number, name in enumerate(own):
            places.setdefault(name, []).append(number / max(1, len(own) - 1))
    names = sorted(places, key=lambda name: (statistics.mean(places[name]), name))
    return [*names, *([sections.OTHER] if any(sections.OTHER in row["stages"] for row in rows) else [])]


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms"


# ---------------------------------------------------------------------------------------------------------------------
# Scaling


def _scaling(curves: Sequence[Row], indices: Sequence[Row], where: str) -> Iterator[Plan]:
    for job in ("selection", "search"):
        own = [row for row in curves if row["job"] == job and len(row["points"]) > 1]
        if own:
            alt = f"Time of the {job} over its sizes, with fitted power laws"
            yield Plan(f"scaling-{job}", partial(_curves, job, own, where), alt)
    known = [row for row in indices if len(row["points"]) > 1]
    if known:
        alt = "Search time over the size of the bank, of the exact search and of approximate indices with their recall"
        yield Plan("scaling-indices", partial(_indices, known, where), alt)


def _curves(job: str, curves: Sequence[Row], where: str) -> Any:
    """Draw a panel for everything that the time grows with: measured points, fitted lines, their exponents."""
    overs = list(dict.fromkeys(row["over"] for row in curves))
    columns = 2 if len(overs) in (1, 2, 4) else 3
    figure = empty(0.75 + 1.95 * math.ceil(len(overs) / columns))
    panels = list(figure.subplots(math.ceil(len(overs) / columns), columns, squeeze=False).flat)
    for number, (axes, over) in enumerate(zip(panels, overs, strict=False)):
        _panel(axes, over, [row for row in curves if row["over"] == over], {2: 5, 3: 4}[columns])
        axes.set_ylabel("" if number % columns else "seconds")
    for axes in panels[len(overs) :]:
        axes.set_axis_off()
    head(figure, f"How the {job}'s time grows", f"{where}. Lines: time = a · sizeᵇ, fitted to the dots")
    handles = [_line(name) for name in dict.fromkeys(row["name"] for row in curves)]
    figure.legend(handles=handles, loc="upper right", ncols=len(handles), borderaxespad=0.3)
    return figure


def _line(name: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=PROGRAMS.get(name, SOFT), marker="o", markersize=4, linewidth=1.2, label=name)


def _panel(axes: Any, over: str, curves: Sequence[Row], most_ticks: int) -> None:
    sizes = sorted({point["x"] for row in curves for point in row["points"]})
    times = [point["median"] for row in curves for point in row["points"]]
    for number, row in enumerate(curves):
        colour = PROGRAMS.get(row["name"], SOFT)
        x = np.array([point["x"] for point in row["points"]], dtype=float)
        axes.plot(x, row["scale"] * x ** row["exponent"], color=colour, linewidth=1.2, alpha=0.7)
        axes.plot(x, [point["median"] for point in row["points"]], "o", color=colour, markersize=4)
        error = f" ± {row['stderr']:.2f}" if "stderr" in row else ""
        words = f"b = {row['exponent']:.2f}{error}".replace("-", "−")
        axes.text(0.03, 0.97 - 0.12 * number, words, transform=axes.transAxes, color=colour, fontsize=8, va="top")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    room = max(1.4, (max(times) / min(times)) ** 0.08)
    low, high = min(times) / room, max(times) * room
    axes.set_ylim(low, high * (high / low) ** (0.14 * len(curves) + 0.05))  # room for the words
    log_ticks(axes.xaxis, axes.get_xlim(), most_ticks)
    log_ticks(axes.yaxis, axes.get_ylim(), 6)
    axes.set_title(over)
    axes.grid(True, axis="y")


def _indices(rows: Sequence[Row], where: str) -> Any:
    """Draw the search time of every index over the bank's size."""
    from matplotlib.ticker import NullLocator

    figure = empty(4.2)
    axes = figure.add_subplot()
    dots = []
    for row in rows:
        x, y = ([point[key] for point in row["points"]] for key in ("x", "median"))
        exact, colour = row["name"] == "mmad-bank, exact", PROGRAMS.get(row["name"], SOFT)
        axes.plot(x, [1e3 * value for value in y], "o-", color=colour, markersize=4, linewidth=2.2 if exact else 1.2)
        text = f"{row['name'].removesuffix(' (approximate)')}, {row['points'][-1]['recall']:.1%}"
        dots.append(Dot(x[-1], 1e3 * y[-1], 3.0, text, colour))
    sizes = [point["x"] for row in rows for point in row["points"]]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(sizes) / 1.2, max(sizes) * 1.1)
    axes.set_xticks(sorted(set(sizes)), [f"{size:,}".replace(",", " ") for size in sorted(set(sizes))])
    axes.xaxis.set_minor_locator(NullLocator())
    log_ticks(axes.yaxis, axes.get_ylim())
    axes.set_xlabel("vectors in the bank")
    axes.set_ylabel("ms per image")
    axes.grid(True, axis="y")
    head(figure, "Where an index overtakes the exact search", f"{where}. After the name: recall@1 in the largest bank")
    label_ends(axes, dots)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Memory against accuracy


def _tradeoff(rows: Sequence[Row], where: str) -> Iterator[Plan]:
    """Plan the figure of ``mmad-bank tune``, of the settings in a result."""
    settings = [tuning.Measured.from_json(row) for row in rows]
    alt = "Error of the patch scores over memory and over frames per second, by ratio, storage and index of the bank"
    yield Plan("tradeoff", partial(_tuning_figure, settings, f"Memory against accuracy: {where}"), alt)


def _tuning_figure(settings: Sequence[tuning.Measured], title: str) -> Any:
    figure = tuning.figure(settings, title=title)
    figure.set_size_inches(8.2, 4.4)  # smaller than on a screen of its own, and so its words larger
    figure.set_dpi(WIDTH * DPI / 8.2)
    return figure
