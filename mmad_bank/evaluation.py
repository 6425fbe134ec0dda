"""Evaluation of a method on a test split: the field's metrics, in bounded memory, and what a report needs.

Every image is scored, measured and let go. Kept are its scores, the sorted scores of its pixels (see
:mod:`mmad_bank.metrics`), and the few predictions that are to be shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.progress import doing, progress_bar
from mmad_bank._internal.timing import collect_times, timed
from mmad_bank.data.frame import picture_of
from mmad_bank.data.names import GOOD
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import as_samples
from mmad_bank.errors import InputError, MissingExtraError, MmadBankError, NoneUsableError
from mmad_bank.methods.base import Method, Part, Prediction, Samples
from mmad_bank.methods.prediction import FUSED
from mmad_bank.metrics import AUPRO, AUROC, LIMITS

RESULT = "result"
"""What a reader is told of it: "fused" is too near to the bank of fused features."""

Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Metrics:
    """What is measured of one result on some images.

    Attributes:
        image_auroc: I-AUROC; None where it is undefined.
        pixel_auroc: P-AUROC; None where it is undefined.
        aupro: AUPRO by limit; None where it is undefined.
        undefined: By metric (``"image_auroc"``, ``"pixel_auroc"``, ``"aupro"``), why there is no value.
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
        id: Of the sample.
        label: 0 normal, 1 anomalous.
        defect: ``"good"`` or the kind of defect.
        score: The method's.
        parts: Of its banks or branches.
    """

    id: str
    label: int
    defect: str
    score: float
    parts: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "id": self.id, "label": self.label, "defect": self.defect, "score": self.score, "parts": dict(self.parts)
        }  # fmt: skip


@dataclass
class Evaluation:
    """How a method does on a category.

    Attributes:
        method: Its name.
        category: The category, or several joined by commas.
        limits: Of AUPRO.
        metrics: By result: ``"fused"`` is the method's own; its parts follow if there are several.
        kinds: By kind of defect and result: that kind's images against the good ones.
        scores: Of every image, in the data set's order.
        failed: By sample, why it could not be scored.
        notes: What a reader of the figures must know.
        seconds: Wall time an image, reading included.
        stages: The same by stage.
        roc: By result, the ROC curve of the images: false and true positive rates.
        pro: By result, the PRO curve: false positive rates of pixels and mean overlaps.
        examples: The predictions kept: highest and lowest scores of good and of anomalous images.
        labels: What a reader is told of each result: ``"result"`` for the method's own, ``"fusion bank"``, …
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
    stages: dict[str, float]
    roc: dict[str, Curve] = field(default_factory=dict, repr=False)
    pro: dict[str, Curve] = field(default_factory=dict, repr=False)
    examples: list[Example] = field(default_factory=list, repr=False)
    labels: dict[str, str] = field(default_factory=dict, repr=False)

    def label(self, result: str) -> str:
        """Return the name of a result for a reader; in JSON and in code it has its short name."""
        return self.labels.get(result, RESULT if result == FUSED else result)

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values with full precision, without curves and examples; no NaN among them."""
        kinds = {
            kind: {
                "images": sum(score.defect == kind for score in self.scores),
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
            "seconds_per_image": self.seconds,
            "stages": self.stages,
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


@dataclass(frozen=True)
class Example:
    """A prediction that is worth showing.

    Attributes:
        role: Why: ``"highest good"``, ``"lowest defect"``, ``"highest defect"`` or ``"lowest good"``.
        prediction: What the method said.
    """

    role: str
    prediction: Prediction


ROLES = ("highest good", "lowest defect", "highest defect", "lowest good")


def evaluate(
    method: Method,
    dataset: Samples,
    *,
    limits: Sequence[float] = LIMITS,
    batch: int = 1,
    examples: int = 0,
    watch: Callable[[Prediction], None] | None = None,
    force: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Score a test split and measure the result: the method's own, each of its parts', and by kind of defect.

    Memory does not grow with the number of images, but for 4 bytes a pixel of each result, on disk past a limit. A
    sample that cannot be read or scored is left out and named; anomalous samples without a mask count for I-AUROC only.
    Pixels are those of the prepared square, as in the papers, but for its padding, which is in no picture.

    Args:
        method: A fitted one.
        dataset: Good and anomalous samples, raw or prepared, usually a category's test split.
        limits: False positive rates in (0, 1] up to which AUPRO integrates.
        batch: Images scored together. Scores do not depend on it, up to rounding.
        examples: Predictions of each role to keep for a report.
        watch: Is shown every prediction that counts, in the order of ``scores``
            (:meth:`mmad_bank.report.Report.watch` keeps small pictures of them).
        force: Evaluate on data that the method was not made for too (prepared otherwise, of other categories); the
            evaluation's notes say so.
        progress: Show a bar on a terminal.

    Raises:
        InputError: There is no sample, or none can be scored; the reason is the first one's. Or the method was not made
            for the data.

    Example:
        >>> evaluation = evaluate(model, open_dataset("parts", "bagel", "test"))  # doctest: +SKIP
        >>> evaluation.metrics["fused"].image_auroc  # doctest: +SKIP
        0.953
    """
    check_index(batch, "batch", 1, 2**31 - 1, "images scored together")
    dataset = as_samples(dataset, "dataset")
    if len(dataset) == 0:
        raise InputError("dataset: expected test samples, found none")
    if not force:
        method.check(dataset, "dataset")
    tally = _Tally(tuple(limits), examples, watch)
    bar = progress_bar("scoring test images", len(dataset)) if progress else nullcontext(lambda done: None)
    with bar as report, collect_times() as stages:
        for samples in _batches(dataset, batch, tally):
            for prediction in _score(method, samples, tally, force):
                tally.add(prediction)
            report(tally.seen)
    if not tally.scores:
        raise NoneUsableError("dataset: no sample can be scored", tally.failed)
    with doing("computing the metrics"):
        return tally.finish(method.name, dict(stages))


def _batches(dataset: Samples, batch: int, tally: _Tally) -> Iterator[list[Sample]]:
    """Read the samples that can be read, a batch at a time."""
    records = getattr(dataset, "records", None)
    waiting: list[Sample] = []
    for number in range(len(dataset)):
        try:
            with timed("reading"):
                waiting.append(dataset[number])
        except MissingExtraError:
            raise
        except MmadBankError as error:
            tally.fail(records[number].id if records is not None else str(number), error)
        if len(waiting) == batch:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _score(method: Method, samples: list[Sample], tally: _Tally, force: bool) -> list[Prediction]:
    """Score a batch; where it fails, one by one, so that a sample that cannot be used costs itself only."""
    begin = time.perf_counter()
    try:
        predictions = method.predict_batch(samples, force=force)
    except MissingExtraError:
        raise
    except MmadBankError as error:
        if len(samples) > 1:
            return [one for sample in samples for one in _score(method, [sample], tally, force)]
        tally.fail(samples[0].id, error)
        return []
    tally.seconds += time.perf_counter() - begin
    return predictions


class _Tally:
    """What is known of the images so far."""

    def __init__(
        self, limits: tuple[float, ...], n_examples: int, watch: Callable[[Prediction], None] | None
    ) -> None:
        self.limits, self.n_examples, self.watch = limits, n_examples, watch
        self.labels: dict[str, str] = {}
        self.scores: list[SampleScore] = []
        self.failed: dict[str, str] = {}
        self.categories: dict[str, None] = {}
        self.warnings: dict[str, None] = {}  # in order, each once
        self.maskless = 0
        self.seconds = 0.0
        self._pixels: dict[str, dict[str, AUPRO]] = {}  # by result and kind
        self._examples: dict[str, list[tuple[float, int, Prediction]]] = {role: [] for role in ROLES}
        AUPRO(limits)  # says what is wrong with them before the work

    @property
    def seen(self) -> int:
        return len(self.scores) + len(self.failed)

    def fail(self, sample_id: str, error: Exception) -> None:
        self.failed[sample_id or f"sample {self.seen}"] = " ".join(str(error).split())

    def add(self, prediction: Prediction) -> None:
        """Measure a prediction."""
        sample, number = prediction.sample, self.seen
        results = {name: part.score for name, part in prediction.parts.items()} if len(prediction.parts) > 1 else {}
        maps = prediction.prepared_maps()
        finite = all(math.isfinite(score) for score in (prediction.score, *results.values()))
        if not finite or not all(bool(torch.isfinite(values).all()) for values in maps.values()):
            self.fail(sample.id, InputError(f"{sample.id}: the method gave NaN or infinity"))
            return
        name = sample.id or str(number)
        kind = _kind(sample)
        self.scores.append(SampleScore(name, int(sample.label > 0), kind, float(prediction.score), results))
        self.categories[sample.category] = None
        self.warnings |= dict.fromkeys(prediction.notes)
        if sample.mask is None:
            self.maskless += 1
        else:
            truth = picture_of(sample.mask, sample.frame)
            for result, values in maps.items():
                self._of(result, kind).update(truth, picture_of(values, sample.frame))
        if not self.labels:
            self.labels = {FUSED: RESULT, **{name: _part_label(name, one) for name, one in prediction.parts.items()}}
        self._keep(prediction, number)
        if self.watch is not None:
            self.watch(prediction)

    def _of(self, result: str, kind: str) -> AUPRO:
        kinds = self._pixels.setdefault(result, {})
        if kind not in kinds:
            kinds[kind] = AUPRO(self.limits)
        return kinds[kind]

    def _keep(self, prediction: Prediction, number: int) -> None:
        """Keep the prediction if it is among the first of a role."""
        group = "defect" if prediction.sample.label else "good"
        for extreme, sign in (("highest", -1.0), ("lowest", 1.0)):
            kept = self._examples[f"{extreme} {group}"]
            kept.append((sign * prediction.score, number, prediction))
            kept.sort(key=lambda entry: entry[:2])
            del kept[self.n_examples :]

    def finish(self, method: str, stages: dict[str, float]) -> Evaluation:
        """Compute the metrics."""
        results = (FUSED, *self.scores[0].parts)
        kinds = sorted({score.defect for score in self.scores if score.label})
        n_images = len(self.scores)
        total = self.seconds + stages.get("reading", 0.0)
        evaluation = Evaluation(
            method=method,
            category=", ".join(self.categories),
            limits=self.limits,
            metrics={result: self._measure(result, kinds) for result in results},
            kinds={kind: {result: self._measure(result, [kind]) for result in results} for kind in kinds},
            scores=self.scores,
            failed=self.failed,
            notes=self._notes(),
            seconds=total / n_images,
            stages={name: taken / n_images for name, taken in stages.items()},
            labels=self.labels,
        )
        for result in results:
            evaluation.roc[result] = self._images(result, kinds).curve()
            evaluation.pro[result] = self._union(result, kinds).curve()
        shown: set[int] = set()
        for role in ROLES:
            for _, number, prediction in self._examples[role]:
                if number not in shown:
                    shown.add(number)
                    evaluation.examples.append(Example(role, prediction))
        return evaluation

    def _measure(self, result: str, kinds: list[str]) -> Metrics:
        images, pixels = self._images(result, kinds), self._union(result, kinds)
        undefined = {}
        if images.undefined is not None:
            undefined["image_auroc"] = images.undefined
        if pixels.undefined is not None:
            undefined["pixel_auroc"] = pixels.undefined.replace("AUPRO", "P-AUROC", 1)
            undefined["aupro"] = pixels.undefined
        aupro = {limit: _defined(value) for limit, value in pixels.compute().items()}
        return Metrics(_defined(images.compute()), _defined(pixels.auroc()), aupro, undefined)

    def _images(self, result: str, kinds: list[str]) -> AUROC:
        chosen = [score for score in self.scores if score.label == 0 or score.defect in kinds]
        values = [score.score if result == FUSED else score.parts[result] for score in chosen]
        metric = AUROC()
        metric.update(np.array([score.label for score in chosen]), np.array(values, dtype=np.float64))
        return metric

    def _union(self, result: str, kinds: list[str]) -> AUPRO:
        own = self._pixels.get(result, {})
        groups = [own[kind] for kind in (GOOD, *kinds) if kind in own]
        return AUPRO.union(groups or [AUPRO(self.limits)])

    def _notes(self) -> list[str]:
        notes = list(self.warnings)
        if self.maskless:
            what = "image has no mask: it counts" if self.maskless == 1 else "images have no mask: they count"
            notes.append(f"{self.maskless} {what} for I-AUROC only")
        return notes


def _kind(sample: Sample) -> str:
    """Return the group of a sample; its label decides whether it is good."""
    if not sample.label:
        return GOOD
    return sample.defect if sample.defect != GOOD else "anomalous"


def _part_label(name: str, part: Part) -> str:
    """Word a part: a bank's says so, so that nobody takes the bank of fused features for the result."""
    return f"{name} {'branch' if part.nearest is None else 'bank'}"


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


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
            tables.append(("the result and its parts" + self._averaged, ["result", *self.metric_names], rows))
        kinds = self.kinds()
        if kinds:
            for title, column in (("I-AUROC", 0), (self.metric_names[2], 2)):
                rows = [[kind, *(word(by[result][column]) for result in self.results)] for kind, by in kinds.items()]
                heads = ["kind of defect", *map(self.label, self.results)]
                tables.append((f"{title} of each kind against the good images{self._averaged}", heads, rows))
        return tables

    @property
    def _averaged(self) -> str:
        return ", mean of the categories" if len(self.evaluations) > 1 else ""

    def remarks(self) -> list[str]:
        """Return a line for everything that is undefined, noted or failed."""
        lines = []
        for evaluation in self.evaluations:
            reasons = dict.fromkeys(evaluation.metrics[FUSED].undefined.values())
            lines += [f"{evaluation.category}: {line}" for line in (*reasons, *evaluation.notes)]
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
            console.print(Text(title, style="bold"), soft_wrap=True)
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            for number, head in enumerate(heads):
                table.add_column(Text(head), justify="right" if number else "left", no_wrap=True)
            for row in rows:
                table.add_row(*map(Text, row), style="bold" if row[0] == "mean" else None)
            console.print(table)
        for line in self.remarks():
            console.print(Text(line), soft_wrap=True)


def word(value: float | None) -> str:
    """Word a metric: three digits, a dash where it is undefined."""
    return "–" if value is None else f"{value:.3f}"


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
