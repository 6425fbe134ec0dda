"""Figures of the methods' pages: published ones (benchmarks/published.py), and the newest that benchmarks measured."""

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

_RESULTS = Path(__file__).parents[2] / "benchmarks/results"
_MARK = re.compile(r"<!-- figures: (.+) -->")
_NAMES = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies"}
_HEADS = ("method", "result", "training images", "I-AUROC", "P-AUROC", "AUPRO@30", "AUPRO@1", "source")


def insert(markdown: str) -> str:
    """Put tables in the place of a page's mark ``<!-- figures: METHOD -->``."""
    return _MARK.sub(lambda mark: "\n\n".join(_blocks(mark[1])), markdown)


def _blocks(method: str) -> Iterator[str]:
    yield "### Published"
    tables = [block for layout in published.ACCURACY for block in _published(layout, method)]
    yield from tables or ["benchmarks/published.py has no figure of this method alone."]
    speed = {name: values for name, values in published.SPEED.items() if _is_of(name, method)}
    if speed:
        rows = [(name, f"{fps:.3f}", f"{memory:.1f}") for name, (fps, memory) in speed.items()]
        yield f"Speed and memory. {published.SPEED_SOURCE.split('. ')[0]}:\n\n" + _grid(("method", "fps", "MB"), rows)
    yield "### Ours"
    yield from _ours(method) or ["No result is kept yet; [Benchmarks](../benchmarks/index.md) says how to measure one."]


def _is_of(name: str, method: str) -> bool:
    """Tell whether a name is that of a method or of a variant: CFM, CFM-M, "CFM, sum"."""
    return re.match(rf"{re.escape(method)}(?![\w])", name) is not None


def _published(layout: str, method: str) -> Iterator[str]:
    rows = [
        (
            one.method, _result(one.result), str(one.shots or "all"), _value(one.image_auroc), _value(one.pixel_auroc),
            _value(one.aupro.get(0.3)), _value(one.aupro.get(0.01)), one.source,
        )
        for one in published.ACCURACY[layout]
        if _is_of(one.method, method)
    ]  # fmt: skip
    if rows:
        yield f"Means over the ten categories of {_NAMES.get(layout, layout)}:\n\n{_grid(_HEADS, rows)}"


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
    return "result" if word == published.FUSED else word


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _grid(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows))
