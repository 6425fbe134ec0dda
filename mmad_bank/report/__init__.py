"""The HTML report of an evaluation: one file that needs nothing else, neither network nor scripts.

Tables, curves and histograms of every category; and for the images with the highest and lowest scores colour image,
depth, ground truth, anomaly map, the scores of each bank, and the normal patches that explain them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import mmad_bank
from mmad_bank._files import replacing
from mmad_bank.data.sample import SampleDataset
from mmad_bank.errors import InputError
from mmad_bank.evaluation import Evaluation, Summary, word
from mmad_bank.methods.base import Method
from mmad_bank.report.cases import Album, render_cases
from mmad_bank.report.charts import colour_of, curves, histograms, key

__all__ = ["Report"]

PAGE = "index.html"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STAGE_COLOURS = ("#c3cad3", "#e2e6eb", "#2563eb", "#d97706", "#7c3aed", "#059669", "#0891b2", "#db2777")


class Report:
    """A report that categories are added to one by one; pictures are encoded on the way.

    Example:
        >>> report = Report()  # doctest: +SKIP
        >>> report.add(evaluate(model, test, examples=2), model, train)  # doctest: +SKIP
        >>> report.write("report")  # doctest: +SKIP
        PosixPath('report/index.html')
    """

    def __init__(self) -> None:
        self._evaluations: list[Evaluation] = []
        self._sections: list[str] = []
        self._method: tuple[str, dict[str, Any]] = ("", {})

    def add(self, evaluation: Evaluation, method: Method | None = None, training: SampleDataset | None = None) -> None:
        """Add a category.

        Args:
            evaluation: With the examples to show.
            method: The method that was evaluated; without it nothing is explained.
            training: Its training split; without it the normal patches are named, not shown.
        """
        if method is not None:
            self._method = type(method).__name__, method.arguments()
        album = Album(evaluation, method, training)
        number = len(self._sections) + 1
        parts = [
            f'<section id="category-{number}"><h2>{escape(evaluation.category or "test split")}</h2>',
            f'<p class="hint">{_counts(evaluation)}</p>',
            _charts(evaluation),
            _stages(evaluation),
            render_cases(album),
            "</section>",
        ]
        self._sections.append("".join(parts))
        self._evaluations.append(evaluation)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``index.html`` to a folder, which is made if it is missing.

        Raises:
            InputError: Nothing has been added.
            OSError: It cannot be written.
        """
        if not self._evaluations:
            raise InputError("report: expected at least one evaluation, found none")
        path = Path(folder) / PAGE
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(self.to_html(), encoding="utf-8")
        return path

    def to_html(self) -> str:
        """Return the page."""
        summary = Summary(self._evaluations)
        name = self._method[0] or self._evaluations[0].method
        style = resources.files(__name__).joinpath("style.css").read_text(encoding="utf-8")
        title = escape(f"{name}: {', '.join(e.category for e in self._evaluations)}")
        return "\n".join([
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{style}</style></head><body>",
            self._head(summary, name),
            f'<main><div class="tables">{_tables(summary)}</div>{_remarks(summary)}{"".join(self._sections)}',
            f"{self._arguments()}</main>",
            f"<footer><p>mmad-bank {escape(mmad_bank.__version__)}. {_EXPLANATION}</p></footer></body></html>\n",
        ])  # fmt: skip

    def _head(self, summary: Summary, name: str) -> str:
        evaluations = summary.evaluations
        n_images = sum(len(e.scores) for e in evaluations)
        what = evaluations[0].category if len(evaluations) == 1 else f"{len(evaluations)} categories"
        links = [
            f'<a href="#category-{number}">{escape(e.category)}</a>' for number, e in enumerate(evaluations, 1)
        ]  # fmt: skip
        nav = f"<nav>{''.join(links)}</nav>" if len(links) > 1 else ""
        lead = f"{n_images:,} test images of {what}: what was found, how surely, and which normal patches explain it."
        return (
            f'<header class="page"><p class="eyebrow">Anomaly detection report</p><h1>{escape(name)}</h1>'
            f'<p class="lead">{escape(lead)}</p>{_figures(summary)}{nav}</header>'
        )

    def _arguments(self) -> str:
        name, arguments = self._method
        if not arguments:
            return ""
        entries = "".join(
            f"<div><dt>{escape(key)}</dt><dd>{escape(_value(value))}</dd></div>" for key, value in arguments.items()
        )
        return f'<section><h2>Settings of {escape(name)}</h2><dl class="arguments">{entries}</dl></section>'


_EXPLANATION = (
    "I-AUROC: probability that a defective image scores higher than a good one. P-AUROC: the same of pixels. AUPRO: "
    "mean share of each defect's area that is found, averaged over the false positive rates of pixels up to a limit, "
    "given as @limit. Larger scores are more anomalous: they are distances to the nearest normal patches, or learnt "
    "from those, and compare within a category and a bank only."
)


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _counts(evaluation: Evaluation) -> str:
    n_anomalous = len(evaluation.scores) - evaluation.n_good
    failed = f", {len(evaluation.failed)} left out" if evaluation.failed else ""
    return f"{evaluation.n_good} good and {n_anomalous} defective images{failed}."


def _figures(summary: Summary) -> str:
    """Return the headline figures."""
    values = dict(zip(summary.metric_names, summary.mean(), strict=True))
    seconds = sum(e.seconds for e in summary.evaluations) / len(summary.evaluations)
    names = [*summary.metric_names[:3], *summary.metric_names[-1:]] if len(values) > 3 else list(values)
    shown = [(name if name.startswith(("I", "P", "A")) else f"AUPRO {name}", word(values[name])) for name in names]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in shown)
    time = f"{seconds:.2f} <small>s</small>" if seconds >= 1 else f"{1000 * seconds:.0f} <small>ms</small>"
    return f'<dl class="figures">{cells}<div><dt>time an image</dt><dd>{time}</dd></div></dl>'


def _tables(summary: Summary) -> str:
    """Return the tables; those of the kinds of defects side by side."""
    tables = [_table(title, heads, rows) for title, heads, rows in summary.tables()]
    wide = len([title for title, *_ in summary.tables() if "each kind" not in title])
    return "".join(tables[:wide]) + f'<div class="pair">{"".join(tables[wide:])}</div>'


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(_row(row, row is rows[-1]) for row in rows)
    name = title[0].upper() + title[1:]
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div><h3>{escape(name)}</h3><div class="scroll">{table}</div></div>'


def _row(cells: Sequence[str], last: bool) -> str:
    kind = ' class="mean"' if last and cells[0] == "mean" else ""
    return f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _remarks(summary: Summary) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in summary.remarks())
    return f'<div class="note"><ul>{lines}</ul></div>' if lines else ""


def _charts(evaluation: Evaluation) -> str:
    """Return the curves and histograms of a category."""
    results = list(evaluation.metrics)
    limit = max(evaluation.limits)
    groups = {"good": [score.score for score in evaluation.scores if score.label == 0]}
    for kind in evaluation.kinds:
        groups[kind] = [score.score for score in evaluation.scores if score.defect == kind and score.label]
    figures = []
    if any(len(x) for x, _ in evaluation.roc.values()):
        values = {name: word(evaluation.metrics[name].image_auroc) for name in results}
        drawn = curves(evaluation.roc, "false positive rate", "true positive rate", chance=True)
        figures.append(("ROC of the images", drawn, _legend(results, values, "I-AUROC")))
    if any(len(x) for x, _ in evaluation.pro.values()):
        values = {name: word(evaluation.metrics[name].aupro[limit]) for name in results}
        drawn = curves(evaluation.pro, "false positive rate of pixels", "mean overlap", limit)
        figures.append(("PRO of the pixels", drawn, _legend(results, values, f"AUPRO @{100 * limit:g}%")))
    if any(groups.values()):
        drawn = histograms({name: values for name, values in groups.items() if values})
        figures.append(("Image scores", drawn, '<p class="hint">Grey: the good images, behind each kind.</p>'))
    cells = [f"<figure><figcaption>{title}</figcaption>{drawn}{below}</figure>" for title, drawn, below in figures]
    return f'<div class="charts">{"".join(cells)}</div>'


def _legend(results: Sequence[str], values: dict[str, str], metric: str) -> str:
    rows = "".join(
        f"<li>{key(colour_of(results, name))}{escape(name)}<b>{values[name]}</b></li>" for name in results
    )
    return f'<ul class="legend"><li class="head"><b>{escape(metric)}</b></li>{rows}</ul>'


def _stages(evaluation: Evaluation) -> str:
    """Return the time of an image, split by stage."""
    total = sum(evaluation.stages.values())
    if not total:
        return ""
    stages = [(name, taken) for name, taken in evaluation.stages.items() if taken / total >= 0.002]
    bars, names = [], []
    for number, (name, taken) in enumerate(stages):
        colour = _STAGE_COLOURS[number % len(_STAGE_COLOURS)]
        bars.append(f'<i style="width:{100 * taken / total:.2f}%;background:{colour}"></i>')
        words = f"{1000 * taken:.0f} ms" if taken < 10 else f"{taken:.1f} s"
        names.append(f"<li>{key(colour)}{escape(name)}<b>{words}</b></li>")
    seconds = evaluation.seconds
    took = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    return (
        f'<h3>Time of an image: {took}</h3><div class="stages">{"".join(bars)}</div>'
        f'<ul class="stage-names">{"".join(names)}</ul>'
    )
