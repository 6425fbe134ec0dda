"""The results of an evaluation: metrics, scores of images, examples, and their tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmad_bank._internal.terminal import printable
from mmad_bank.errors import InputError
from mmad_bank.evaluation._words import cells_of, remarks_on, some_of, word
from mmad_bank.evaluation.decisions import Decisions
from mmad_bank.evaluation.parts import PartScores
from mmad_bank.methods.base import Prediction
from mmad_bank.methods.verdicts import BAD, FUSED

RESULT = "result"
"""Name of the method's own result for readers: "fused" is too near to the bank of fused features."""

Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Metrics:
    """Measurements of one result on some images.

    Attributes:
        image_auroc: I-AUROC; None where it is undefined.
        pixel_auroc: P-AUROC; None where it is undefined.
        aupro: AUPRO by limit; None where it is undefined.
        undefined: Reasons why there is no value, by metric (``"image_auroc"``, ``"pixel_auroc"``, ``"aupro"``).
    """

    image_auroc: float | None
    pixel_auroc: float | None
    aupro: dict[float, float | None]
    undefined: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values; an undefined metric is null."""
        aupro = {f"{limit:g}": value for limit, value in self.aupro.items()}
        values = {"image_auroc": self.image_auroc, "pixel_auroc": self.pixel_auroc, "aupro": aupro}
        return {**values, "undefined": self.undefined} if self.undefined else values


@dataclass(frozen=True)
class SampleScore:
    """The scores of one image.

    Attributes:
        id: Id of the sample.
        label: 0 for normal, 1 for anomalous.
        defect: ``"good"`` or the kind of defect.
        score: The method's score.
        parts: Scores of its banks or branches, by name.
        p_value: Conformal p-value of the score; None where the method is not calibrated.
        verdict: ``"good"`` or ``"bad"``, likewise.
    """

    id: str
    label: int
    defect: str
    score: float
    parts: dict[str, float]
    p_value: float | None = None
    verdict: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values."""
        own = {
            "id": self.id, "label": self.label, "defect": self.defect, "score": self.score, "parts": dict(self.parts)
        }  # fmt: skip
        return own if self.verdict is None else {**own, "p_value": self.p_value, "verdict": self.verdict}


@dataclass
class Evaluation:
    """Results of a method on a category.

    Attributes:
        method: Name of the method.
        category: The category, or several joined by commas.
        limits: Limits of AUPRO.
        metrics: Metrics by result: ``"fused"`` is the method's own; its parts follow if there are several.
        kinds: Metrics by kind of defect and result: that kind's images against the good ones.
        scores: Scores of every image, in the data set's order.
        failed: Reasons why samples could not be scored, by id.
        notes: Remarks that a reader of the figures must know.
        seconds: Wall time per image in seconds, reading included.
        sections: The same by section: reading, extraction, search, …; JSON calls them ``"stages"``.
        roc: ROC curves of the images, by result: false and true positive rates.
        pro: PRO curves, by result: false positive rates of pixels and mean overlaps.
        examples: The predictions kept: highest and lowest scores of good and of anomalous images.
        labels: Names of the results for a reader: ``"result"`` for the method's own, ``"fusion bank"``, …
        decisions: What the verdicts are worth; None where the method is not calibrated.
        parts: The parts that several images show each, by which the verdicts are counted; None where each image counts.
    """

    method: str
    category: str
    limits: tuple[float, ...]
    metrics: dict[str, Metrics]
    kinds: dict[str, dict[str, Metrics]]
    scores: list[SampleScore]
    failed: dict[str, str]
    notes: list[str]
    seconds: float
    sections: dict[str, float]
    roc: dict[str, Curve] = field(default_factory=dict, repr=False)
    pro: dict[str, Curve] = field(default_factory=dict, repr=False)
    examples: list[Example] = field(default_factory=list, repr=False)
    labels: dict[str, str] = field(default_factory=dict, repr=False)
    decisions: Decisions | None = None
    parts: PartScores | None = None

    def label(self, result: str) -> str:
        """Return the name of a result for a reader; in JSON and in code it has its short name."""
        return self.labels.get(result, RESULT if result == FUSED else result)

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values with full precision, without curves and examples; no NaN among them."""
        kinds = {
            kind: {
                "images": self.n_of(kind),
                "found": None if self.decisions is None else self.n_found(kind),
                "metrics": {name: values.as_json() for name, values in results.items()},
            }
            for kind, results in self.kinds.items()
        }
        return {
            "method": self.method,
            "category": self.category,
            "images": {"good": self.n_good, "anomalous": len(self.scores) - self.n_good, "failed": len(self.failed)},
            "labels": {name: self.label(name) for name in self.metrics},
            "metrics": {name: values.as_json() for name, values in self.metrics.items()},
            "kinds": kinds,
            "decisions": self.decisions and self.decisions.as_json(),
            **({} if self.parts is None else {"parts": self.parts.as_json()}),
            "seconds_per_image": self.seconds,
            "stages": self.sections,
            "notes": self.notes,
            "failed": self.failed,
            "scores": [score.as_json() for score in self.scores],
        }

    def to_markdown(self) -> str:
        """Return the tables of results for a Markdown file, see :class:`Summary`."""
        return Summary([self]).to_markdown()

    @property
    def n_good(self) -> int:
        """Number of good images that were scored."""
        return sum(score.label == 0 for score in self.scores)

    def n_of(self, kind: str) -> int:
        """Return the number of images with a kind of defect that were scored."""
        return sum(score.defect == kind for score in self.scores)

    def n_found(self, kind: str) -> int:
        """Return the number of images with a kind of defect whose verdict is bad."""
        return sum(score.defect == kind and score.verdict == BAD for score in self.scores)


@dataclass(frozen=True)
class Example:
    """A prediction that is worth showing.

    Attributes:
        role: Reason to show it, one of :data:`ROLES`.
        prediction: The method's prediction.
    """

    role: str
    prediction: Prediction


HIGHEST_GOOD, LOWEST_DEFECT = "highest good", "lowest defect"
HIGHEST_DEFECT, LOWEST_GOOD = "highest defect", "lowest good"
ROLES = (HIGHEST_GOOD, LOWEST_DEFECT, HIGHEST_DEFECT, LOWEST_GOOD)
"""Why an example is shown: the score that it has among the good or the anomalous images; the order of a report."""


class Summary:
    """The results of one or several categories in tables, with their mean.

    Args:
        evaluations: One a category.

    Example:
        >>> print(Summary([bagel, rope]).to_markdown())  # doctest: +SKIP
    """

    def __init__(self, evaluations: Sequence[Evaluation]) -> None:
        if not evaluations:
            raise InputError("evaluations: expected at least one, found none")
        self.evaluations = list(evaluations)

    @property
    def limits(self) -> tuple[float, ...]:
        """The limits of AUPRO."""
        return self.evaluations[0].limits

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the results that all categories have."""
        first = self.evaluations[0].metrics
        return tuple(name for name in first if all(name in evaluation.metrics for evaluation in self.evaluations))

    def label(self, result: str) -> str:
        """Return the name of a result for a reader, see :meth:`Evaluation.label`."""
        return self.evaluations[0].label(result)

    @property
    def metric_names(self) -> list[str]:
        """Headings of a row's metrics."""
        limits = [f"@{100 * limit:g}%" for limit in self.limits]
        return ["I-AUROC", "P-AUROC", f"AUPRO {limits[0]}", *limits[1:]]

    def values(self, metrics: Metrics) -> list[float | None]:
        """Return a row's metrics."""
        return [metrics.image_auroc, metrics.pixel_auroc, *(metrics.aupro[limit] for limit in self.limits)]

    def mean(self, result: str = FUSED) -> list[float | None]:
        """Return the metrics' means over the categories in which they are defined."""
        return _means([self.values(evaluation.metrics[result]) for evaluation in self.evaluations])

    def kinds(self) -> dict[str, dict[str, list[float | None]]]:
        """Return the metrics of each kind of defect by result, the means over the categories that have it."""
        names = sorted({kind for evaluation in self.evaluations for kind in evaluation.kinds})
        return {
            kind: {
                result: _means([self.values(e.kinds[kind][result]) for e in self.evaluations if kind in e.kinds])
                for result in self.results
            }
            for kind in names
        }

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values: the means by result, and every category."""
        means = {}
        for result in self.results:
            image, pixel, *aupro = self.mean(result)
            by_limit = {f"{limit:g}": value for limit, value in zip(self.limits, aupro, strict=True)}
            means[result] = {"image_auroc": image, "pixel_auroc": pixel, "aupro": by_limit}
        return {"mean": means, "categories": [evaluation.as_json() for evaluation in self.evaluations]}

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return title, headings and rows of each table, as words; a mean stands in the last row of the first."""
        heads = [*self.metric_names, "images", "s/img"]
        rows = [[e.category, *map(word, self.values(e.metrics[FUSED])), *_size_and_time(e)] for e in self.evaluations]
        if len(rows) > 1:
            times = sum(e.seconds for e in self.evaluations) / len(rows)
            images = sum(len(e.scores) for e in self.evaluations)
            rows.append(["mean", *map(word, self.mean()), str(images), f"{times:.2f}"])
        tables = [("results by category", ["category", *heads], rows)]
        if len(self.results) > 1:
            rows = [[self.label(result), *map(word, self.mean(result))] for result in self.results]
            tables.append(
                (f"the result and that of {self._branches} alone{self._averaged}", ["result", *self.metric_names], rows)
            )
        tables += [*self._parts(), *self._verdicts(), *self._found_by_kind()]
        kinds = self.kinds()
        if kinds:
            for title, column in (("I-AUROC", 0), (self.metric_names[2], 2)):
                rows = [[kind, *(word(by[result][column]) for result in self.results)] for kind, by in kinds.items()]
                heads = ["kind of defect", *map(self.label, self.results)]
                tables.append((f"{title} of each kind against the good images{self._averaged}", heads, rows))
        return tables

    def _parts(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Yield the table of parts that several images show, if there are some."""
        rows = [
            [e.category, word(e.parts.auroc), str(len(e.parts.scores)), str(e.parts.n_anomalous)]
            for e in self.evaluations
            if e.parts is not None
        ]
        if rows:
            yield "parts, each by the highest score of its images", ["category", "AUROC", "parts", "anomalous"], rows

    def _verdicts(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Yield the table of verdicts, if there are some."""
        judged = [(e.category, e.decisions) for e in self.evaluations if e.decisions is not None]
        if judged:
            heads = ["category", "threshold", "promised", "false alarms", "95 % interval of false alarms", "found"]
            heads += ["precision", "F1", "best F1"]
            what = "verdicts on parts" if any(one.unit == "parts" for _, one in judged) else "verdicts"
            yield f"{what} at the promised false-alarm rate", heads, [[name, *cells_of(one)] for name, one in judged]

    def _found_by_kind(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Yield the table of how many defects of each kind are found, those of all categories together."""
        judged, counts = [e for e in self.evaluations if e.decisions is not None], {}
        for kind in sorted({kind for e in judged for kind in e.kinds}):
            counts[kind] = sum(e.n_found(kind) for e in judged), sum(e.n_of(kind) for e in judged)
        if counts:
            title = "defects found of each kind at the promised false-alarm rate"
            yield title, ["kind of defect", "found"], [[kind, some_of(*n)] for kind, n in counts.items()]

    @property
    def _branches(self) -> str:
        """Words for the parts of the methods: banks, or branches of a method without banks."""
        names = dict.fromkeys(self.label(result).rpartition(" ")[2] for result in self.results if result != FUSED)
        return f"each {' or '.join(names)}"

    @property
    def _averaged(self) -> str:
        return ", mean of the categories" if len(self.evaluations) > 1 else ""

    def remarks(self) -> list[str]:
        """Return a line for everything that is undefined, noted or failed."""
        lines = []
        for evaluation in self.evaluations:
            reasons = dict.fromkeys(evaluation.metrics[FUSED].undefined.values())
            lines += [f"{evaluation.category}: {line}" for line in (*reasons, *evaluation.notes)]
            if evaluation.decisions is not None:
                lines += remarks_on(evaluation.category, evaluation.decisions)
            lines += [f"left out: {why}" for why in evaluation.failed.values()]
        return lines

    def to_markdown(self) -> str:
        """Return the tables for a Markdown file."""
        parts = []
        for title, heads, rows in self.tables():
            parts.append(f"**{_cell(title)}**\n")
            lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
            parts.append("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n")
        parts += [f"- {_cell(line)}" for line in self.remarks()]
        return "\n".join(parts).rstrip() + "\n"

    def print(self, console: Any = None) -> None:
        """Print the tables to a terminal.

        Args:
            console: A ``rich.console.Console``; default: standard output.
        """
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = console or Console(highlight=False)
        if not console.is_terminal:
            console.width = 200  # a pipe must not cut names and figures short
        for title, heads, rows in self.tables():
            console.print(Text(printable(title), style="bold"), soft_wrap=True)
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            for number, head in enumerate(heads):
                table.add_column(Text(printable(head)), justify="right" if number else "left", no_wrap=True)
            for row in rows:
                table.add_row(*(Text(printable(cell)) for cell in row), style="bold" if row[0] == "mean" else None)
            console.print(table)
        for line in self.remarks():
            console.print(Text(printable(line)), soft_wrap=True)


def _size_and_time(evaluation: Evaluation) -> list[str]:
    return [str(len(evaluation.scores)), f"{evaluation.seconds:.2f}"]


def _means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    means: list[float | None] = []
    for column in zip(*rows, strict=True):
        known = [value for value in column if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _cell(text: str) -> str:
    """Put text into a Markdown cell: nothing in a folder's name may end the cell or start a tag."""
    for mark in "\\|<>`*_[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
