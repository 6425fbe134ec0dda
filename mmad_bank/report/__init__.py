"""The HTML report of an evaluation: a folder that needs nothing else; it works from a file, without network.

Tables, curves and histograms of every category; for the images with the highest and lowest scores colour image, depth,
ground truth, anomaly map, the scores of each part, and the normal patches that explain them; and all images, small, to
choose from and to page through.
"""

from __future__ import annotations

import json
import os
import platform
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from html import escape
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import mmad_bank
from mmad_bank._internal.folders import replacing_folder
from mmad_bank._internal.palette import section_colour
from mmad_bank._internal.shares import percent
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.errors import InputError
from mmad_bank.evaluation import Evaluation, Summary, word
from mmad_bank.methods.base import Method, Prediction
from mmad_bank.report.cases import Album, render_cases
from mmad_bank.report.charts import Curve, colour_of, curves, histograms, key
from mmad_bank.report.gallery import FOLDER, Thumbnails, is_picture, render_gallery, write_pictures

__all__ = ["Origin", "Report", "check_report_folder"]

PAGE = "index.html"
FACTS = "report.json"
_FORMAT = "mmad-bank report"
_EYEBROW = '<p class="eyebrow">Anomaly detection report</p>'


@dataclass(frozen=True)
class Origin:
    """Origin of a report's figures, in its words.

    Attributes:
        command: The command line that made it.
        dataset: The data set's folder.
        split: Name of the split that was scored.
        model: The model's folder.
        date: Date of the evaluation, with its time zone.
    """

    command: str | None = None
    dataset: str | None = None
    split: str = "test"
    model: str | None = None
    date: datetime = field(default_factory=lambda: datetime.now().astimezone())


@dataclass(frozen=True)
class _Category:
    """Parts of a category that are kept until the report is written."""

    evaluation: Evaluation
    html: str
    thumbnails: Thumbnails | None
    limits: tuple[float, float]


class Report:
    """A report that categories are added to one by one; pictures are encoded on the way.

    Args:
        origin: Words of the report on where its figures come from.

    Example:
        >>> report = Report(Origin(dataset="parts"))  # doctest: +SKIP
        >>> report.add(evaluate(model, test, examples=2, watch=report.watch), model, train)  # doctest: +SKIP
        >>> report.write("report")  # doctest: +SKIP
        PosixPath('report/index.html')
    """

    def __init__(self, origin: Origin | None = None) -> None:
        self.origin = origin or Origin()
        self._categories: list[_Category] = []
        self._method: Method | None = None
        self._watched: Thumbnails | None = None

    def watch(self, prediction: Prediction) -> None:
        """Keep a small picture of an image of the category that is added next, for the list of all images."""
        if self._watched is None:
            self._watched = Thumbnails()
        self._watched.add(prediction)

    def add(self, evaluation: Evaluation, method: Method | None = None, training: SampleDataset | None = None) -> None:
        """Add a category.

        Args:
            evaluation: Evaluation with the examples to show.
            method: The method that was evaluated; without it nothing is explained.
            training: Its training split; without it the normal patches are named, not shown.

        Raises:
            InputError: Since the last category other images were watched than this one's.
        """
        thumbnails, self._watched = self._watched, None
        if thumbnails is not None and len(thumbnails) != len(evaluation.scores):
            found = f"{len(thumbnails)} images watched, {len(evaluation.scores)} scored"
            raise InputError(f"evaluation: expected the one whose images were watched last, found {found}")
        self._method = method or self._method
        album = Album(evaluation, method, training)
        number = len(self._categories) + 1
        parts = [
            f'<section id="category-{number}"><h2>{escape(evaluation.category or "test split")}</h2>',
            f'<p class="hint">{_counts(evaluation)}</p>',
            _charts(evaluation),
            _sections(evaluation),
            render_cases(album),
            render_gallery(evaluation, number, thumbnails is not None),
            "</section>",
        ]
        self._categories.append(_Category(evaluation, "".join(parts), thumbnails, album.limits))

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write the report to a folder: ``index.html``, ``images`` and ``report.json``, whole or not at all.

        A report that is there already is replaced.

        Returns:
            The path of ``index.html``, for a browser.

        Raises:
            InputError: Nothing has been added, the folder holds something else, or it cannot be written.
        """
        if not self._categories:
            raise InputError("report: expected at least one evaluation, found none")
        check_report_folder(folder)
        with replacing_folder(folder) as partial:
            for number, category in enumerate(self._categories, 1):
                if category.thumbnails is not None:
                    write_pictures(partial, number, category.thumbnails, category.limits)
            (partial / PAGE).write_text(self.to_html(), encoding="utf-8", errors="backslashreplace")
            facts = {"format": _FORMAT, "version": 1, "about": dict(self._facts()), **self._summary().as_json()}
            (partial / FACTS).write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return Path(folder) / PAGE

    def _summary(self) -> Summary:
        return Summary([category.evaluation for category in self._categories])

    @property
    def _name(self) -> str:
        return type(self._method).__name__ if self._method else self._categories[0].evaluation.method

    def to_html(self) -> str:
        """Return the page; the small pictures of all images lie beside it, where :meth:`write` puts them."""
        summary = self._summary()
        title = escape(f"{self._name}: {', '.join(e.category for e in summary.evaluations)}")
        script = _resource("page.js")
        hashed = b64encode(sha256(script.encode()).digest()).decode()
        policy = (
            f"default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'; script-src 'sha256-{hashed}'"
        )
        sections = "".join(category.html for category in self._categories)
        return "\n".join([
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{_resource('style.css')}</style></head><body>",
            self._head(summary),
            f'<main>{self._about()}<div class="tables">{_tables(summary)}</div>{_remarks(summary)}{sections}',
            f"{self._arguments()}</main>",
            f"<footer><p>{_EXPLANATION}</p></footer><script>{script}</script></body></html>\n",
        ])  # fmt: skip

    def _head(self, summary: Summary) -> str:
        evaluations = summary.evaluations
        n_images = sum(len(e.scores) for e in evaluations)
        what = evaluations[0].category if len(evaluations) == 1 else f"{len(evaluations)} categories"
        links = [
            f'<a href="#category-{number}">{escape(e.category)}</a>' for number, e in enumerate(evaluations, 1)
        ]  # fmt: skip
        nav = f'<nav aria-label="Categories">{"".join(links)}</nav>' if len(links) > 1 else ""
        lead = f"{n_images:,} images of {what}: what was found, how surely, and which normal patches explain it."
        return (
            f'<header class="page">{_EYEBROW}<h1>{escape(self._name)}</h1>'
            f'<p class="lead">{escape(lead)}</p>{_figures(summary)}{nav}</header>'
        )

    def _facts(self) -> Iterator[tuple[str, str]]:
        """Yield what the report says of itself."""
        origin, method = self.origin, self._method
        yield "date", origin.date.strftime("%Y-%m-%d %H:%M %z")
        if origin.dataset is not None:
            yield "data set", f"{origin.dataset}, split {origin.split}"
        if method is not None:
            model = "" if origin.model is None else f", {origin.model}"
            yield "model", f"{type(method).__name__}, fitted on {len(method.train_ids_):,} normal images{model}"
            if method.preprocessing_ is not None:
                settings = method.preprocessing_.as_json()
                yield "preparation", ", ".join(f"{name} {_value(value)}" for name, value in settings.items())
        yield "verdicts", _of_verdicts([category.evaluation for category in self._categories])
        if origin.command is not None:
            yield "command", origin.command
        packages = ("torch", "numpy")
        versions = [("mmad-bank", mmad_bank.__version__), ("Python", platform.python_version())]
        versions += [(name, metadata.version(name)) for name in packages]
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions)

    def _about(self) -> str:
        entries = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in self._facts())
        return f'<section class="about"><h3>About this report</h3><dl>{entries}</dl></section>'

    def _arguments(self) -> str:
        if self._method is None:
            return ""
        entries = "".join(
            f"<div><dt>{escape(key)}</dt><dd>{escape(_value(value))}</dd></div>"
            for key, value in self._method.arguments().items()
        )
        return f'<section><h2>Settings of {escape(self._name)}</h2><dl class="arguments">{entries}</dl></section>'


def _of_verdicts(evaluations: Sequence[Evaluation]) -> str:
    """Say what the verdicts of a report rest on."""
    judged = [one.decisions for one in evaluations if one.decisions is not None]
    if not judged:
        return "none: the model is not calibrated on held-out normal images; images are ranked by their scores"
    rates = " to ".join(dict.fromkeys(percent(ends(one.threshold.rate for one in judged)) for ends in (min, max)))
    few, many = (ends(one.held_out for one in judged) for ends in (min, max))
    images = f"{few}" if few == many else f"{few} to {many}"
    return f"bad at a promised false-alarm rate of {rates}, calibrated on {images} {judged[0].origin}"


def check_report_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that a report must not replace: one that holds anything but a report.

    Raises:
        InputError: It is a file, or something else is in it.
    """
    path = Path(folder)
    if not path.is_dir():
        if path.exists():
            raise InputError(f"report: expected a folder, found the file {str(path)!r}")
        return
    names = {entry.name for entry in path.iterdir()}
    foreign = sorted(names - {PAGE, FACTS, FOLDER})
    foreign += [f"{FOLDER}/{name}" for name in sorted(_names(path / FOLDER)) if not is_picture(name)]
    if foreign or (names and not _is_report(path)):
        found = ", ".join(repr(name) for name in (foreign or sorted(names))[:3])
        expected = "expected a new folder, or one with a report and nothing else"
        raise InputError(f"report: {expected}, found {found} in {path}")


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def _is_report(folder: Path) -> bool:
    """Tell a report by its facts, or one of an older version, which has none, by the words at its page's head."""
    try:
        if (folder / FACTS).exists():
            return bool(json.loads((folder / FACTS).read_text(encoding="utf-8"))["format"] == _FORMAT)
        return _names(folder) == [PAGE] and _EYEBROW in (folder / PAGE).read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _resource(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


_EXPLANATION = (
    "I-AUROC: probability that a defective image scores higher than a good one. P-AUROC: the same of pixels. AUPRO: "
    "mean share of each defect's area that is found, averaged over the false positive rates of pixels up to a limit, "
    "given as @limit. Larger scores are more anomalous: they are distances to the nearest normal patches, or learnt "
    "from normal images, and compare within a category and a bank only."
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
    return f'<dl class="figures">{cells}<div><dt>time per image</dt><dd>{time}</dd></div></dl>'


def _tables(summary: Summary) -> str:
    """Return the tables; those of the kinds of defects side by side."""
    tables = [_table(title, heads, rows) for title, heads, rows in summary.tables()]
    wide = len([title for title, *_ in summary.tables() if "each kind" not in title])
    return "".join(tables[:wide]) + f'<div class="pair">{"".join(tables[wide:])}</div>'


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    body = "".join(_row(row, row is rows[-1]) for row in rows)
    name = escape(title[0].upper() + title[1:], quote=True)
    table = f"<table><caption><span>{name}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{table}</div>'


def _row(cells: Sequence[str], last: bool) -> str:
    kind = ' class="mean"' if last and cells[0] == "mean" else ""
    values = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    return f'<tr{kind}><th scope="row">{escape(cells[0])}</th>{values}</tr>'


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
        drawn = curves(_labelled(evaluation, evaluation.roc), "false positive rate", "true positive rate", chance=True)
        figures.append(("ROC of the images", drawn, _legend(evaluation, values, "I-AUROC")))
    if any(len(x) for x, _ in evaluation.pro.values()):
        values = {name: word(evaluation.metrics[name].aupro[limit]) for name in results}
        drawn = curves(_labelled(evaluation, evaluation.pro), "false positive rate of pixels", "mean overlap", limit)
        figures.append(("PRO of the pixels", drawn, _legend(evaluation, values, f"AUPRO @{100 * limit:g}%")))
    if any(groups.values()):
        judged = evaluation.decisions
        above = None if judged is None else judged.threshold.score
        drawn = histograms({name: values for name, values in groups.items() if values}, above)
        words = "Grey: the good images, behind each kind." + (" Dashed: above it an image is bad." if judged else "")
        figures.append(("Image scores", drawn, f'<p class="hint">{words}</p>'))
    cells = [f"<figure><figcaption>{title}</figcaption>{drawn}{below}</figure>" for title, drawn, below in figures]
    return f'<div class="charts">{"".join(cells)}</div>'


def _labelled(evaluation: Evaluation, lines: Mapping[str, Curve]) -> dict[str, Curve]:
    return {evaluation.label(name): line for name, line in lines.items()}


def _legend(evaluation: Evaluation, values: Mapping[str, str], metric: str) -> str:
    results = list(evaluation.metrics)
    rows = "".join(
        f"<li>{key(colour_of(results, name))}{escape(evaluation.label(name))}<b>{values[name]}</b></li>"
        for name in results
    )
    return f'<ul class="legend"><li class="head"><b>{escape(metric)}</b></li>{rows}</ul>'


def _sections(evaluation: Evaluation) -> str:
    """Return the time of an image, split by section."""
    total = sum(evaluation.sections.values())
    if not total:
        return ""
    shown = [(name, taken) for name, taken in evaluation.sections.items() if taken / total >= 0.002]
    bars, names = [], []
    for name, taken in shown:
        colour = section_colour(name)
        bars.append(f'<i style="width:{100 * taken / total:.2f}%;background:{colour}"></i>')
        words = f"{1000 * taken:.0f} ms" if taken < 10 else f"{taken:.1f} s"
        names.append(f"<li>{key(colour)}{escape(name)}<b>{words}</b></li>")
    seconds = evaluation.seconds
    took = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    return (
        f'<h3>Time per image: {took}</h3><div class="stages" aria-hidden="true">{"".join(bars)}</div>'
        f'<ul class="stage-names">{"".join(names)}</ul>'
    )
