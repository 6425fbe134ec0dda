"""What the papers' tables say of one run, put together from all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmad_bank.evaluation import FUSED
from published.reading import Figure, Mark, Row, Table, tables

ACCURACIES = ("image_auroc", "pixel_auroc", "aupro_30", "aupro_10", "aupro_5", "aupro_1")
_CHOOSING = ("banks", "branches", "aggregation")
_NO_OTHER_RUN = {"batch"}
"""Arguments that follow from a data set's size, and make no other method."""


@dataclass(frozen=True)
class Accuracy:
    """Figures of a run that one paper has.

    Attributes:
        label: What was run, in our words.
        source: The paper, with what else a reader must know.
        numbers: Numbers of the tables that they stand in.
        method: Name of our method.
        arguments: Arguments of its constructor, but for those that choose a result.
        result: ``"fused"``, or the bank, branch or map that was used alone.
        shots: Training images of a few-shot run; None for all.
        figures: Figures by metric.
        marks: What is doubtful of them, with the number of the table that it stands in.
    """

    label: str
    source: str
    numbers: tuple[int, ...]
    method: str
    arguments: Mapping[str, Any]
    result: str
    shots: int | None
    figures: Mapping[str, Figure]
    marks: tuple[str, ...] = ()

    def mean(self, metric: str) -> float | None:
        """Return a metric's mean over the categories, or None."""
        return self.figures[metric].mean if metric in self.figures else None


def quoted(layout: str) -> list[Accuracy]:
    """Return what is published of every run that our methods know, by data set; rows that need more are left out.

    A paper that only repeats what the papers before it say of a run is left out.

    Example:
        >>> sorted({one.source for one in quoted("eyecandies")})
        ["CFM's paper", "CFM's paper, trained anew on all images", "LSFA's paper"]
    """
    runs: dict[tuple[Any, ...], dict[str, Accuracy]] = {}
    for table in tables().values():
        for row in table.rows if table.data == layout else ():
            if row.runnable:
                own = _accuracy(table, row)
                run = own.method, tuple(sorted(own.arguments.items())), own.result, own.shots
                papers = runs.setdefault(run, {})
                papers[own.source] = _joined(papers[own.source], own) if own.source in papers else own
    return [one for papers in runs.values() for one in _news(papers.values())]


def accuracy_of(
    layout: str,
    method: str,
    arguments: Mapping[str, Any] | None = None,
    result: str = FUSED,
    shots: int | None = None,
) -> list[Accuracy]:
    """Return what is published of a method's result on a data set: none, one or several papers' figures.

    Example:
        >>> [one.mean("image_auroc") for one in accuracy_of("mvtec3d", "cfm", {"variant": "M"})]
        [0.96]
    """
    kept, part = _chosen(arguments or {}, result)
    wanted = method, kept, part, shots
    return [one for one in quoted(layout) if (one.method, one.arguments, one.result, one.shots) == wanted]


def _accuracy(table: Table, row: Row) -> Accuracy:
    """Read a row; a figure that is marked to contradict others is left to the tables that have these."""
    assert row.method is not None
    arguments, result = _chosen(row.arguments, row.result)
    doubtful = {one.metric for one in table.marks if one.kind == "contradictory" and one.row == row.key}
    figures = {name: row.figures[name] for name in ACCURACIES if name in row.figures and name not in doubtful}
    source = table.source if row.note is None else f"{table.source}, {row.note}"
    told = (one for one in table.marks if one.row in (row.key, None) and one.kind != "rounding")
    marks = tuple(_worded(table, row, one) for one in told)
    numbers = (table.number,)
    return Accuracy(row.label, source, numbers, row.method, arguments, result, row.shots, figures, marks)


def _worded(table: Table, row: Row, mark: Mark) -> str:
    return f"table {table.number}{f', {row.label}' if mark.row else ''}: {mark.why}"


def _chosen(arguments: Mapping[str, Any], result: str) -> tuple[dict[str, Any], str]:
    """Take one bank, branch or map alone as a result of the whole method."""
    kept = {name: value for name, value in arguments.items() if name not in _NO_OTHER_RUN}
    for name in _CHOOSING:
        value = kept.get(name)
        alone = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        if result == FUSED and alone in ("xyz", "rgb", "fusion") and "fusion" not in kept:
            del kept[name]
            result = alone
    return kept, result


def _joined(first: Accuracy, second: Accuracy) -> Accuracy:
    """Put two tables of a paper together; where both have a figure, the first one's stays.

    Categories go with their mean: a table with another one is of another run.
    """
    figures = {**second.figures, **first.figures}
    for name, own in first.figures.items():
        other = second.figures.get(name, own)
        if None in (own.printed, other.printed) or own.printed == other.printed:
            printed = other.printed if own.printed is None else own.printed
            figures[name] = Figure(printed, own.by_category or other.by_category)
    numbers = tuple(dict.fromkeys((*first.numbers, *second.numbers)))
    marks = tuple(dict.fromkeys((*first.marks, *second.marks)))
    return replace(first, numbers=numbers, figures=figures, marks=marks)


def _news(papers: Iterable[Accuracy]) -> Iterator[Accuracy]:
    seen: set[tuple[str, float | None]] = set()
    for one in papers:
        own = {(name, figure.printed) for name, figure in one.figures.items() if figure.printed is not None}
        if not seen or not own <= seen:
            yield one
        seen |= own
