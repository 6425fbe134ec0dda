"""The tables of the papers, read from the files beside this module.

A file names its paper (``source``, ``citation``), may say how many ``thresholds`` its AUPRO takes, and holds its tables
by the name that the command line knows, such as ``m3dm-1`` for table 1. A table has

- ``title``, in our words, and ``data``: the data set, by its layout;
- ``figures``: a line for a row, or for a row's metric. ``ROW 0.1 0.2`` gives ``metrics`` in their order;
  ``ROW METRIC 0.1 ... | 0.5`` gives a metric by category, and its mean as printed behind the bar. ``metric`` of the
  table takes the word's place where all lines are of one. ``-`` stands for what is not at hand, ``#`` starts a comment;
- ``percent``: figures are printed as percentages;
- ``rows``: what each row is; of rows that another table describes, ``like`` names that table;
- ``also``: arguments that all rows of a method have in this table, by method;
- ``marks``: what is ``damaged`` in the text at hand, ``contradictory``, an ``unknown`` condition of a run, a ``mean``
  that is not that of the categories, or one off by less than 0.001, by ``rounding``. A mark without row or metric is
  of all;
- ``machine``, where speed was measured;
- ``settings`` and ``heads``, where a table has words in place of figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mmad_bank.evaluation import FUSED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAPERS = ("m3dm", "cfm", "mdss", "lsfa", "reproduction")
"""The files, in the order in which their figures are looked at."""
CATEGORIES = {
    "mvtec3d": ("bagel", "cable_gland", "carrot", "cookie", "dowel", "foam", "peach", "potato", "rope", "tire"),
    "eyecandies": (
        "CandyCane", "ChocolateCookie", "ChocolatePraline", "Confetto", "GummyBear", "HazelnutTruffle",
        "LicoriceSandwich", "Lollipop", "Marshmallow", "PeppermintCandy",
    ),
}  # fmt: skip
"""Categories by data set, in the order of the papers' columns."""
METRICS = {
    "image_auroc": "I-AUROC", "pixel_auroc": "P-AUROC", "aupro_30": "AUPRO@30", "aupro_10": "AUPRO@10",
    "aupro_5": "AUPRO@5", "aupro_1": "AUPRO@1", "fps": "fps", "memory_mb": "MB",
}  # fmt: skip
"""Names of the metrics by key. fps are images per second, MB those of parameters, activations and banks."""


@dataclass(frozen=True)
class Figure:
    """A metric of a row.

    Attributes:
        printed: Mean over the categories as printed; None where it is not at hand.
        by_category: Figures by category, as far as the paper has them.
    """

    printed: float | None = None
    by_category: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """The printed mean, or, where that is not at hand, the one of a whole row of categories."""
        if self.printed is None and len(self.by_category) == len(CATEGORIES["mvtec3d"]):
            return sum(self.by_category.values()) / len(self.by_category)
        return self.printed


@dataclass(frozen=True)
class Row:
    """Row of a table, and how mmad-bank runs what it is of.

    Attributes:
        key: Name within the table.
        label: What the row is, in our words.
        modality: ``"rgb"``, ``"xyz"`` or ``"both"``: what the tested method looks at.
        figures: Figures by metric, a key of :data:`METRICS`.
        method: Name of our method; None for a baseline that is quoted only.
        arguments: Arguments of its constructor; the recipe is not among them.
        result: ``"fused"``, or the bank or branch that is used alone.
        shots: Training images of a few-shot run; None for all.
        needs: What mmad-bank lacks so far to run the row; None if it can.
        note: What sets the row apart from others of the same run.
    """

    key: str
    label: str
    modality: str
    figures: Mapping[str, Figure]
    method: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: str = FUSED
    shots: int | None = None
    needs: str | None = None
    note: str | None = None

    @property
    def runnable(self) -> bool:
        """Whether the method and its arguments are there."""
        return self.method is not None and self.needs is None


@dataclass(frozen=True)
class Mark:
    """A place that is not to be trusted as it stands: kind, why, and of which row and metric; None is all."""

    kind: str
    why: str
    row: str | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        name: Its name on the command line, such as ``"cfm-13"``.
        title: What it shows, in our words.
        data: Data set by its layout, or ``"none"``.
        source: The paper, in few words.
        rows: Its rows, in the paper's order.
        marks: Places that are damaged or contradictory.
        heads: Headings of the settings.
        settings: Words in place of figures, by setting.
        machine: What speed and memory were measured on.
        thresholds: Thresholds that its AUPRO samples: 100, as in MVTec's evaluation, unless the paper's code is known
            to take others.
    """

    name: str
    title: str
    data: str
    source: str
    rows: tuple[Row, ...] = ()
    marks: tuple[Mark, ...] = ()
    heads: tuple[str, ...] = ()
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    machine: str | None = None
    thresholds: int = 100

    @property
    def number(self) -> int:
        """Its number in the paper."""
        return int(self.name.rpartition("-")[2])

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that some row has."""
        return tuple(name for name in METRICS if any(name in row.figures for row in self.rows))

    def marks_of(self, row: str, metric: str) -> list[Mark]:
        """Return the marks of a row's metric."""
        return [one for one in self.marks if one.row in (row, None) and one.metric in (metric, None)]


@cache
def tables() -> Mapping[str, Table]:
    """Return the tables of all papers by name.

    Example:
        >>> tables()["cfm-13"].data
        'eyecandies'
    """
    return {one.name: one for paper in PAPERS for one in _tables(_file(paper))}


def table(name: str) -> Table:
    """Return a table by its name.

    Example:
        >>> table("mdss-2").rows[-1].figures["image_auroc"].printed
        0.956
    """
    return tables()[name]


@cache
def sources() -> Mapping[str, str]:
    """Return the papers' citations, by the words that a table gives for its source."""
    return {file["source"]: file["citation"] for file in map(_file, PAPERS)}


@cache
def baselines() -> Mapping[str, str]:
    """Return where the baselines come from that are quoted only, by the first words of their rows' labels."""
    return _file("baselines")


@cache
def _file(paper: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / f"{paper}.toml").read_text(encoding="utf-8"))


def _tables(file: Mapping[str, Any]) -> Iterator[Table]:
    described: dict[str, dict[str, Any]] = {}
    for name, one in file["tables"].items():
        described[name] = {**described.get(one.get("like", ""), {}), **one.get("rows", {})}
        read = _figures(one) if "figures" in one else {}
        yield Table(
            name, one["title"], one["data"], file["source"],
            tuple(_row(key, described[name][key], figures, one.get("also", {})) for key, figures in read.items()),
            tuple(Mark(**mark) for mark in one.get("marks", ())),
            tuple(one.get("heads", ())),
            {setting: tuple(words) for setting, words in one.get("settings", {}).items()}, one.get("machine"),
            file.get("thresholds", 100),
        )  # fmt: skip


def _figures(one: Mapping[str, Any]) -> dict[str, dict[str, Figure]]:
    """Read the lines of a table: figures by row and metric."""
    found: dict[str, dict[str, Figure]] = {}
    scale = 100 if one.get("percent") else 1
    for line in one["figures"].splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        row = found.setdefault(words[0], {})
        if "|" not in words:
            values = [_number(word, scale) for word in words[1:]]
            row |= {metric: Figure(value) for metric, value in zip(one["metrics"], values, strict=True)}
            continue
        metric, first = (one["metric"], 1) if "metric" in one else (words[1], 2)
        bar = words.index("|")
        names = CATEGORIES[one["data"]] if bar > first else ()
        pairs = zip(names, (_number(word, scale) for word in words[first:bar]), strict=True)
        (mean,) = words[bar + 1 :]
        row[metric] = Figure(_number(mean, scale), {name: value for name, value in pairs if value is not None})
    return found


def _number(word: str, scale: int) -> float | None:
    return None if word == "-" else round(float(word) / scale, 6)


def _row(key: str, given: Mapping[str, Any], figures: Mapping[str, Figure], also: Mapping[str, Any]) -> Row:
    rest = dict(given)
    arguments = {**rest.pop("arguments", {}), **also.get(rest.get("method", ""), {})}
    return Row(key, figures=figures, arguments={name: _plain(value) for name, value in arguments.items()}, **rest)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
