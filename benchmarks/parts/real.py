"""PatchCore with the bundled features on real pictures, beside anomalib's Patchcore on the same pictures and features.

Accuracy, verdicts at promised false-alarm rates, the same by kind of defect, and times. The data set is given by
``--data``, in any layout of one or several categories with good training pictures and a labeled test split. Without
anomalib its rows are missing, and a note says how to install it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from anomalib_patchcore import HOW_TO_INSTALL, Patchcore, f1_threshold
from common import Column, Table, alternate

from mmad_bank._internal.shares import percent
from mmad_bank.calibration import Calibration, Threshold
from mmad_bank.data import categories_of, open_dataset
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.sample import Sample
from mmad_bank.errors import InputError, MissingSplitError, MmadBankError
from mmad_bank.evaluation import FUSED, Decisions, Evaluation, evaluate
from mmad_bank.evaluation.tally import Tally
from mmad_bank.methods import PatchCore
from mmad_bank.methods.base import Prediction
from parts.runs import chosen_of

OURS, THEIRS = "mmad-bank", "anomalib"
OUR_BANK = "anomalib, mmad-bank's bank"
RATES = (0.01, 0.05, 0.1)
"""False-alarm rates that verdicts are asked for."""
LIMIT = 0.3
PER_ROUND = 20
"""Number of test pictures that a round of the timing scores."""
QUICK = 12
"""Number of training pictures of a quick run, and of test pictures of each kind."""
BEST = "best F1"
SEEN, UNSEEN = "the test set, defects included", "held-out good pictures"
"""What a threshold was chosen on."""


@dataclass
class _Contestant:
    """A fitted contestant on one category, and what was measured of it.

    Attributes:
        name: Its name in the tables.
        predict: Function that scores a prepared sample.
        bank: Number of vectors in its bank.
        evaluation: Its scores, and what they are worth.
        best: Threshold of the best F1 on the test set, as it finds it.
        fit_seconds: Time of a fit without a calibration.
        calibrated_seconds: Time of a fit with it.
        calibration: Scores of held-out pictures; None where it has none.
    """

    name: str
    predict: Callable[[Sample], object]
    bank: int
    evaluation: Evaluation
    best: float
    fit_seconds: float | None = None
    calibrated_seconds: float | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class _Judged:
    """Verdicts of a contestant by one threshold: what that was chosen for, on what, and what they are worth."""

    rule: str
    chosen_on: str
    decisions: Decisions


# ---------------------------------------------------------------------------------------------------------------------
# Running


def check(arguments: argparse.Namespace) -> None:
    """Refuse a data set that nothing can be measured on; nothing is fitted.

    Raises:
        InputError: There is no data set, or it has no labeled test split with good and defective pictures.
    """
    for category in categories(arguments):
        splits(arguments, category)


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and measure the contestants on every category.

    Raises:
        SystemExit: A category cannot be used; the message is one line.
    """
    del limits
    whole, verdicts, kinds = tables = _empty_tables(arguments.data.resolve().name, arguments.rounds)
    try:
        for category in categories(arguments):
            notes: list[str] = []
            train, validation, test = splits(arguments, category)
            found, samples = _measure(train, validation, test, notes)
            whole.rows += _whole_rows(category, found, samples, arguments.rounds)
            for one in found:
                judged = list(_judge(one, notes))
                verdicts.rows += [_verdict_row(category, one, own) for own in judged]
                kinds.rows += _kind_rows(category, one, judged)
            sizes = f"{len(train)} training pictures, {_sizes(test)} to test"
            whole.notes += [f"{category}: {note}" for note in (sizes, *dict.fromkeys(notes))]
    except MmadBankError as error:
        sys.exit(f"error: {error}")
    return list(tables)


def categories(arguments: argparse.Namespace) -> list[str]:
    try:
        known = categories_of(arguments.data)
    except InputError as error:
        raise InputError(f"--data: {error}") from None
    return chosen_of(known, arguments.only)


def splits(arguments: argparse.Namespace, category: str) -> tuple[SampleDataset, SampleDataset | None, SampleDataset]:
    """Open the splits of a category: training, validation (None where there is none), test."""
    train, test = (open_dataset(arguments.data, category, split) for split in ("train", "test"))
    if not test.labeled or set(map(bool, test.labels)) != {False, True}:
        raise InputError(f"--data: {test.path}: expected good and defective test pictures of {category}")
    validation = None
    with suppress(MissingSplitError):
        validation = open_dataset(arguments.data, category, "validation")
    if not arguments.quick:
        return train, validation, test
    by_kind: dict[str, list[int]] = {}
    for number, record in enumerate(test.records):
        by_kind.setdefault(record.defect, []).append(number)
    return (
        train.select(range(min(QUICK, len(train)))),
        None,
        test.select(number for own in by_kind.values() for number in own[:QUICK]),
    )


def _sizes(test: SampleDataset) -> str:
    good = sum(not label for label in test.labels)
    return f"{good} good and {len(test) - good} defective ones"


def _measure(
    train: SampleDataset, validation: SampleDataset | None, test: SampleDataset, notes: list[str]
) -> tuple[list[_Contestant], list[Sample]]:
    """Fit the contestants and score the test pictures; return these, prepared, too."""
    arguments = PatchCore.bundled_arguments()
    PatchCore(**arguments).fit(train.select(range(min(2, len(train)))))  # not counted: what is loaded once
    begin = time.perf_counter()
    model = PatchCore(**arguments).fit(train, validation=validation)
    calibrated = time.perf_counter() - begin
    begin = time.perf_counter()
    PatchCore(**arguments, calibration="none").fit(train)
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    samples = list(prepared(model, test))
    if not samples:
        raise InputError(f"--data: {test.path}: no test picture can be read")
    notes.append(f"Reading and preparing a picture takes {(time.perf_counter() - begin) / len(samples) * 1e3:.0f} ms.")
    if len(samples) < len(test):
        notes.append(f"{len(test) - len(samples)} test pictures cannot be used and are left out.")
    evaluation = evaluate(model, samples, limits=(LIMIT,))
    best = _above(evaluation, math.inf).best_threshold
    assert best is not None
    ours = _Contestant(
        OURS, lambda sample: model.predict(sample).verdict, len(model.banks_["rgb"]), evaluation, best, seconds,
        calibrated, None if model.calibration_ is None else model.calibration_.own,
    )  # fmt: skip
    return [ours, *_peers(model, train, samples, notes)], samples


def prepared(model: PatchCore, dataset: SampleDataset) -> Iterator[Sample]:
    """Read and prepare samples, as a fit and an evaluation do: what cannot be used is left out."""
    for number in range(len(dataset)):
        with suppress(InputError):
            yield model.prepare(dataset[number])


def _peers(
    model: PatchCore, train: SampleDataset, samples: Sequence[Sample], notes: list[str]
) -> Iterator[_Contestant]:
    """Yield anomalib with its own coreset, and with the bank of a model, whose features it takes; if it is there."""
    network = model.extractors_.networks["rgb"]
    try:
        own, borrowing = (Patchcore(network.forward, model.grid) for _ in range(2))
    except ImportError as error:
        notes.append(f"anomalib cannot be imported ({error}), so that it has no rows: {HOW_TO_INSTALL}")
        return
    begin = time.perf_counter()
    own.fit(sample.rgb for sample in prepared(model, train))
    seconds = time.perf_counter() - begin
    borrowing.with_bank(model.banks_["rgb"].vectors)
    for name, peer, taken in ((THEIRS, own, seconds), (OUR_BANK, borrowing, None)):
        tally = Tally((LIMIT,), 0, None)
        for sample in samples:
            tally.add(Prediction(*peer.predict(sample.rgb), sample))
        evaluation = tally.finish(name, {})
        best = f1_threshold(*_labels_and_scores(evaluation))
        yield _Contestant(name, lambda sample, peer=peer: peer.predict(sample.rgb), len(peer), evaluation, best, taken)


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts


def _labels_and_scores(evaluation: Evaluation) -> tuple[list[int], list[float]]:
    return [one.label for one in evaluation.scores], [one.score for one in evaluation.scores]


def _above(evaluation: Evaluation, score: float) -> Decisions:
    """Judge by a threshold that stands for no false-alarm rate."""
    return Decisions.of(*_labels_and_scores(evaluation), Threshold(score, math.nan, False), 0, "")


def _judge(one: _Contestant, notes: list[str]) -> Iterator[_Judged]:
    """Judge by the promised rates, where a contestant has any, and by the best F1."""
    calibration = one.calibration
    for rate in RATES if calibration is not None else ():
        try:
            threshold = calibration.threshold(rate)
        except InputError:
            notes.append(f"{len(calibration)} held-out pictures cannot promise {percent(rate)}.")
            continue
        known = _labels_and_scores(one.evaluation)
        decisions = Decisions.of(*known, threshold, len(calibration), calibration.origin)
        extrapolated = ", extrapolated" if threshold.extrapolated else ""
        yield _Judged(f"{percent(rate)} promised{extrapolated}", UNSEEN, decisions)
    yield _Judged(BEST, SEEN, _above(one.evaluation, one.best))


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _empty_tables(data: str, rounds: int) -> tuple[Table, Table, Table]:
    who = [Column("category", "category"), Column("name", "PatchCore of")]
    accuracy = [Column("image_auroc", "I-AUROC", ".3f"), Column("pixel_auroc", "P-AUROC", ".3f"),
                Column("aupro", "AUPRO@30", ".3f")]  # fmt: skip
    times = [Column("fit", "fit, seconds", ".1f"), Column("calibrated", "fit with calibration, seconds", ".1f"),
             Column("median_ms", "ms per picture", ".1f"), Column("ratio", "× mmad-bank", ".2f")]  # fmt: skip
    bank = Column("bank", "bank", "d", detail=True)
    whole = Table(f"PatchCore on {data}, bundled features", [*who, *accuracy, bank, *times], headline=True)
    whole.notes = _whole_notes(rounds)
    worth = [Column("rule", "threshold"), Column("chosen_on", "chosen on"), Column("alarms", "false alarms"),
             Column("interval", "95 % interval of false alarms"), Column("found", "defects found"),
             Column("precision", "precision", ".3f"), Column("f1", "F1", ".3f")]  # fmt: skip
    verdicts = Table(f"Verdicts on {data}", [*who, *worth], headline=True)
    verdicts.notes = [
        "'Promised' is a share of the good pictures that may be called bad. The interval is that of Clopper and"
        " Pearson for the false-alarm rate.",
        "'best F1' needs defects with labels, and these are the ones that it is then judged on: what it gives elsewhere"
        " is not known. Of anomalib it is the threshold of F1AdaptiveThreshold on the test set, the default of its data"
        " module for MVTec AD, and a picture is bad above it, as in its post-processor. Of mmad-bank it is for"
        " comparison only.",
    ]
    rules = [Column(f"found_{rule}", f"found, {rule}", "d") for rule in (*map(percent, RATES), BEST)]
    kinds = Table(
        f"By kind of defect: {data}",
        [*who, Column("kind", "kind"), Column("images", "pictures", "d"), accuracy[0], accuracy[2], *rules],
    )
    kinds.notes = ["A kind's pictures against the good ones. Thresholds are those of the table of verdicts."]
    return whole, verdicts, kinds


def _whole_notes(rounds: int) -> list[str]:
    return [
        "All score the same prepared pictures by the same features. Padding is left out of P-AUROC and AUPRO of all."
        " mmad-bank leaves it out of the picture's score as well; anomalib, which knows of no padding, scores it.",
        f"anomalib: its PatchcoreModel with its defaults (coreset of {Patchcore.RATIO:g} by random projection and a"
        " random first pick, 9 neighbors), without its network, its averaging of features and the Lightning engine. It"
        " enlarges patch scores without interpolation, mmad-bank bilinearly; both blur with a Gaussian of 4 pixels.",
        f"'{OUR_BANK}' has the vectors that mmad-bank has selected: what is left is the difference in scores and maps.",
        "Fit: from files to the bank, one run each. The calibration scores each training picture by banks that were"
        " selected without its fold, unless there are enough validation pictures.",
        f"ms per picture: from a prepared picture in memory to score and map (and verdict), one at a time; median of"
        f" {rounds} interleaved rounds of up to {PER_ROUND} test pictures.",
    ]


def _whole_rows(
    category: str, found: Sequence[_Contestant], samples: Sequence[Sample], rounds: int
) -> list[dict[str, Any]]:
    """Time the contestants in turn, and return a row for each."""
    timed = samples[:: max(1, len(samples) // PER_ROUND)][:PER_ROUND]

    def work(predict: Callable[[Sample], object]) -> float:
        begin = time.perf_counter()
        for sample in timed:
            predict(sample)
        return (time.perf_counter() - begin) / len(timed)

    timings = alternate({one.name: lambda one=one: work(one.predict) for one in found}, rounds)
    rows = []
    for one in found:
        metrics, own = one.evaluation.metrics[FUSED], timings.of(one.name)
        rows.append({
            "category": category, "name": one.name, "image_auroc": metrics.image_auroc,
            "pixel_auroc": metrics.pixel_auroc, "aupro": metrics.aupro[LIMIT], "bank": one.bank,
            "fit": one.fit_seconds, "calibrated": one.calibrated_seconds, "median_ms": own["median"] * 1e3, **own,
            "ratio": timings.ratio(one.name, OURS), "ratios": timings.ratios(one.name, OURS),
            "failed": dict(one.evaluation.failed),
        })  # fmt: skip
    return rows


def _verdict_row(category: str, one: _Contestant, judged: _Judged) -> dict[str, Any]:
    own = judged.decisions
    assert own.false_alarm_rate is not None
    assert own.interval is not None
    assert own.recall is not None
    return {
        "category": category, "name": one.name, "rule": judged.rule, "chosen_on": judged.chosen_on,
        "alarms": _of(own.false_alarms, own.false_alarms + own.passed, own.false_alarm_rate),
        "interval": " to ".join(map(percent, own.interval)),
        "found": _of(own.found, own.found + own.missed, own.recall), "precision": own.precision, "f1": own.f1,
        "threshold": own.threshold.score, "held_out": own.held_out, "origin": own.origin,
        "false_alarm_rate": own.false_alarm_rate, "recall": own.recall,
    }  # fmt: skip


def _kind_rows(category: str, one: _Contestant, judged: Iterable[_Judged]) -> Iterator[dict[str, Any]]:
    for kind, results in one.evaluation.kinds.items():
        scores = [score.score for score in one.evaluation.scores if score.label and score.defect == kind]
        metrics = results[FUSED]
        found = {
            f"found_{own.rule.split(' promised')[0]}": sum(score > own.decisions.threshold.score for score in scores)
            for own in judged
        }
        yield {
            "category": category, "name": one.name, "kind": kind, "images": len(scores),
            "image_auroc": metrics.image_auroc, "aupro": metrics.aupro[LIMIT], **found,
        }  # fmt: skip


def _of(part: int, whole: int, rate: float) -> str:
    return f"{part} of {whole} ({percent(rate)})"
