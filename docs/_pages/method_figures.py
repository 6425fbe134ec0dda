"""Figures of the methods' pages: published ones (benchmarks/published/), and the newest that benchmarks measured."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import newest
import published
from common import Table
from pages import joined, machine_words

from mmad_bank import methods
from mmad_bank.evaluation import FUSED

_RESULTS = Path(__file__).parents[2] / "benchmarks/results"
_MARK = re.compile(r"<!-- figures: (.+) -->")
_NAMES = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies"}
_SPEED_TABLE = "cfm-5"
_METRICS = ("image_auroc", "pixel_auroc", "aupro_30", "aupro_1")
_HEADS = ("what", "training images", *(published.METRICS[name] for name in _METRICS), "source")


def insert(markdown: str) -> str:
    """Put tables in the place of a page's mark ``<!-- figures: METHOD -->``."""
    return _MARK.sub(lambda mark: "\n\n".join(_blocks(mark[1])), markdown)


def _blocks(method: str) -> Iterator[str]:
    yield "### Published"
    tables = [block for layout in published.CATEGORIES for block in _published(layout, method)]
    yield from tables or ["benchmarks/published/ has no figure of this method alone."]
    speed = published.table(_SPEED_TABLE)
    rows = [
        (row.label, *(f"{row.figures[name].mean:.{digits}f}" for name, digits in (("fps", 3), ("memory_mb", 1))))
        for row in speed.rows
        if row.method == _name_of(method)
    ]
    if rows:
        words = f"{speed.source}, table {speed.number}: {speed.machine}"
        yield f"Speed and memory. {words}:\n\n" + _grid(("method", "fps", "MB"), rows)
    yield "### Ours"
    yield from _ours(method) or ["No result is kept yet; [Benchmarks](../benchmarks/index.md) says how to measure one."]


def _name_of(method: str) -> str:
    """Return the name, on the command line, of the method of a class: ``ShapeGuided`` is ``shape_guided``."""
    return next(name for name in methods.names() if methods.method_class(name).__name__ == method)


def _is_of(name: str, method: str) -> bool:
    """Tell whether a name is that of a method or of a variant: CFM, CFM-M, "CFM, sum"."""
    return re.match(rf"{re.escape(method)}(?![\w])", name) is not None


def _published(layout: str, method: str) -> Iterator[str]:
    found = [one for one in published.quoted(layout) if one.method == _name_of(method)]
    rows = [
        (one.label, str(one.shots or "all"), *(_value(one.mean(name)) for name in _METRICS), _source(one))
        for one in found
    ]
    if rows:
        yield f"Means over the ten categories of {_NAMES[layout]}:\n\n{_grid(_HEADS, rows)}"
    doubts = list(dict.fromkeys(f"- {one.source}, {mark}" for one in found for mark in one.marks))
    if doubts:
        yield "Doubtful among them:\n\n" + "\n".join(doubts)


def _source(one: published.Accuracy) -> str:
    tables = ", ".join(map(str, one.numbers))
    return f"{one.source}, table{'s' if len(one.numbers) > 1 else ''} {tables}"


def _ours(method: str) -> list[str]:
    blocks = []
    for values in _results():
        for table in joined(Table.from_json(one) for one in values["parts"].get("accuracy", ())):
            rows = [row for row in table.rows if _is_of(row["method"], method)]
            if rows and table.headline:
                heads = tuple(column.heading for column in table.columns)
                cells = [tuple(_result(column.cell(row)) for column in table.columns) for row in rows]
                told = f"{table.title}. {machine_words(values)}, {values['date'][:10]}"
                blocks.append(f"{told} ([how it is measured](../benchmarks/accuracy.md)):\n\n{_grid(heads, cells)}")
    return blocks


@cache
def _results() -> list[Any]:
    """Return the newest results of all machines together."""
    found = [newest.read(path) for path in sorted(_RESULTS.glob("*.json"))]
    return list(newest.of_most_data(newest.newest(found, anywhere=True)))


def _result(word: str) -> str:
    return "result" if word == FUSED else word


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _grid(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows))
