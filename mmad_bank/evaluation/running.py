"""A method on a test split, a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

from mmad_bank._internal import sections
from mmad_bank._internal.batches import run_batch
from mmad_bank._internal.checks import check_index
from mmad_bank._internal.progress import doing, progress_bar
from mmad_bank._internal.timing import collect_times, timed
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import as_samples
from mmad_bank.errors import InputError, MissingExtraError, MmadBankError, NoneUsableError
from mmad_bank.evaluation.results import Evaluation
from mmad_bank.evaluation.tally import Tally
from mmad_bank.methods.base import Method, Prediction, Samples
from mmad_bank.methods.part_verdicts import pattern_of
from mmad_bank.metrics import LIMITS


def evaluate(
    method: Method,
    dataset: Samples,
    *,
    limits: Sequence[float] = LIMITS,
    n_thresholds: int | None = 100,
    batch: int = 1,
    examples: int = 0,
    watch: Callable[[Prediction], None] | None = None,
    force: bool = False,
    progress: bool = False,
    views: str | None = None,
) -> Evaluation:
    """Score a test split and measure the result: the method's own, each of its parts', and by kind of defect.

    Memory does not grow with the number of images, except for 4 bytes per pixel of each result, on disk past a limit. A
    sample that cannot be read or scored is left out and named; anomalous samples without a mask count for I-AUROC only.
    Pixels are those of the prepared square, as in the papers, but for its padding, which is in no picture.

    Args:
        method: A fitted method.
        dataset: Good and anomalous samples, raw or prepared, usually a category's test split.
        limits: False positive rates in (0, 1] up to which AUPRO integrates.
        n_thresholds: Number of thresholds that AUPRO samples, see :func:`mmad_bank.metrics.aupro`; None for the exact
            curve.
        batch: Number of images scored together. Scores do not depend on it, up to rounding.
        examples: Number of predictions of each role to keep for a report.
        watch: Function that is shown every prediction that counts, in the order of ``scores``
            (:meth:`mmad_bank.report.Report.watch` keeps small pictures of them).
        force: Whether to evaluate on data that the method was not made for too (prepared otherwise, of other
            categories); the evaluation's notes say so.
        progress: Whether to show a bar on a terminal.
        views: Pattern of the images' ids, where several show one part (:class:`mmad_bank.data.ViewPattern`); default:
            the method's. Verdicts are counted by part then, and a part is anomalous if one of its images is.

    Raises:
        InputError: There is no sample, or none can be scored; the reason is the first one's. Or nothing says which
            samples are normal, the method was not made for the data, or ``limits`` or ``n_thresholds`` is out of range.

    Example:
        >>> evaluation = evaluate(model, open_dataset("parts", "bagel", "test"))  # doctest: +SKIP
        >>> evaluation.metrics["fused"].image_auroc  # doctest: +SKIP
        0.953
    """
    check_index(batch, "batch", 1, 2**31 - 1, "images scored together")
    pattern = pattern_of(method, views)
    dataset = as_samples(dataset, "dataset")
    if isinstance(dataset, SampleDataset) and not dataset.labeled:
        raise unlabeled(dataset.path)
    if len(dataset) == 0:
        raise InputError("dataset: expected test samples, found none")
    if not force:
        dataset = method.suited(dataset)
        method.check(dataset, "dataset")
    tally = Tally(
        tuple(limits), examples, watch, n_thresholds, None if pattern is None else pattern.text, method.memory_banks
    )
    work = _counted(method, tally, force)
    bar = progress_bar("scoring test images", len(dataset)) if progress else nullcontext(lambda done: None)
    with bar as report, collect_times() as seconds:
        for samples in _batches(dataset, batch, tally):
            found = run_batch(work, samples, lambda sample, error: tally.fail(sample.id, error))
            for prediction in found:
                if prediction is not None:
                    tally.add(prediction)
            report(tally.seen)
    if not tally.scores:
        raise NoneUsableError("dataset: no sample can be scored", tally.failed)
    with doing("computing the metrics"):
        return tally.finish(method.name, dict(seconds))


def unlabeled(path: object) -> InputError:
    """Return the error that says what plain pictures lack for an evaluation."""
    return InputError(
        f"{path}: expected good and defective samples that are known as such, CATEGORY/test/{{good,DEFECT}}/NAME.png,"
        " found plain pictures, of which nothing is known; mmad-bank predict scores them"
    )


def _batches(dataset: Samples, batch: int, tally: Tally) -> Iterator[list[Sample]]:
    """Read the samples that can be read, a batch at a time."""
    records = getattr(dataset, "records", None)
    waiting: list[Sample] = []
    for number in range(len(dataset)):
        try:
            with timed(sections.READING):
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


def _counted(method: Method, tally: Tally, force: bool) -> Callable[[list[Sample]], list[Prediction]]:
    """Return a function that scores samples and counts the time; none is counted for what cannot be scored.

    A runtime that compiles networks does so for the first samples. They are scored twice, and the first time is not
    counted: no test picture of a line waits for it.
    """
    cold = getattr(method, "runtime", "torch") != "torch"

    def score(samples: list[Sample]) -> list[Prediction]:
        nonlocal cold
        if cold:
            with collect_times():  # nobody reads them: the sections are those of the second time
                method.predict_batch(samples, force=force)
            cold = False
        begin = time.perf_counter()
        predictions = method.predict_batch(samples, force=force)
        tally.seconds += time.perf_counter() - begin
        return predictions

    return score
