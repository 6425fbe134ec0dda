"""Runs of methods on a data set: every category prepared once per recipe, fitted, evaluated, and kept.

Runs that differ only in arguments which no fit depends on share one, and a method that trains a part for all categories
(M3DM's UFF, LSFA's adaptors) trains it once. What is done stays in the job's folder, where a later job goes on.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common import versions

from mmad_bank._internal.resume import Stages, remove_stages
from mmad_bank.data import Preprocessing, SampleDataset, categories_of, few_shot, open_dataset, prepare
from mmad_bank.data.layouts import layout_of
from mmad_bank.errors import InputError, MmadBankError
from mmad_bank.evaluation import FUSED, Evaluation, Metrics, evaluate
from mmad_bank.features.factory import PRETRAINED
from mmad_bank.methods import Method
from mmad_bank.methods.cfm import CFM
from mmad_bank.methods.preparing import refuse_missing
from mmad_bank.methods.shared import Shared, train_shared

LIMITS = (0.3, 0.1, 0.05, 0.01)
WEIGHTS = {
    "rgb": ("rgb_weights", "rgb", "vit_base_patch8_224.dino"),
    "wide_resnet": ("rgb_weights", "rgb", "wide_resnet50_2.tv_in1k"),
    "wide_resnet_timm": ("rgb_weights", "rgb", "wide_resnet50_2.racm_in1k"),
    "efficientnet_b5": ("rgb_weights", "rgb", "tf_efficientnet_b5.aa_in1k"),
    "point_mae": ("xyz_weights", "xyz", "point_mae"),
    "uff": ("uff_weights", "uff_weights", "train"),
    "pdn": ("teacher", "teacher", "distil"),
}
"""Weight files by name: the constructor's argument that takes one, for methods in which another has this value."""
NAMES = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies"}
METRICS = {"image_auroc": "I-AUROC", "pixel_auroc": "P-AUROC", "aupro": "AUPRO"}

Found = dict[str, dict[str, dict[str, Any]]]
"""What was measured: ``rows`` by result, and ``notes``, by the run's key and the category."""


@dataclass
class Job:
    """Job of a measurement: the data set, and what all runs share."""

    data: Path
    layout: str
    categories: list[str]
    root: Path
    shots: int | None = None
    bundled: bool = False
    synthetic: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return "synthetic data" if self.synthetic else NAMES.get(self.layout, self.data.resolve().name)

    @property
    def title(self) -> str:
        """Words for what the tables are of."""
        few = f", {self.shots} training images" if self.shots else ""
        return f"{self.name}{few}{', bundled extractors' if self.bundled else ''}"

    def worded(self, reason: object) -> str:
        """Return a reason in one line, its files named from the data set's folder on: results are for others too."""
        line = " ".join(str(reason).split())
        for folder in (self.data, self.data.resolve(), self.root):
            line = line.replace(f"{folder}/", "")
        return line

    def leave_out(self, what: str, error: Exception) -> None:
        """Note that something could not be measured, and say so."""
        line = f"{what}: {self.worded(error)}"
        if f"Left out: {line}" not in self.notes:
            self.notes.append(f"Left out: {line}")
            say(line)


def job_of(data: Path, only: str | None, root: Path) -> Job:
    """Return the job on a data set, or on some of its categories, joined by commas; ``root`` keeps what is done.

    Raises:
        InputError: There is no data set, or not such a category.
    """
    try:
        known = categories_of(data)
    except InputError as error:
        raise InputError(f"--data: {error}") from None
    return Job(data, layout_of(data), chosen_of(known, only), root)


def check_modalities(job: Job, models: Sequence[Method]) -> None:
    """Refuse a data set of which no model can score any category, for want of pictures or of point clouds.

    Raises:
        InputError: It is such a data set.
    """
    first = None
    for model, category in itertools.product(models, job.categories):
        try:
            train = open_dataset(job.data, category, "train")
            refuse_missing(train, model.modalities, model.name, str(job.data))
        except InputError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise InputError(f"--data: {first}")


def chosen_of(known: list[str], only: str | None) -> list[str]:
    """Return the categories that ``--only`` names, joined by commas; all where it is not given.

    Raises:
        InputError: There is not such a category.
    """
    chosen = only.split(",") if only else known
    for name in chosen:
        if name not in known:
            raise InputError(f"--only: expected some of {', '.join(known)}, found {name!r}")
    return chosen


class Files:
    """Weight files by name, and the methods that take them.

    Args:
        pairs: ``NAME=FILE``, NAME one of :data:`WEIGHTS`.

    Raises:
        InputError: There is no such name or file.
    """

    def __init__(self, pairs: Iterable[str]) -> None:
        self.paths: dict[str, str] = {}
        self._used: set[str] = set()
        for pair in pairs:
            key, _, path = pair.partition("=")
            if key not in WEIGHTS or not path:
                raise InputError(f"--weights: expected NAME=FILE, NAME one of {', '.join(WEIGHTS)}, found {pair!r}")
            if not Path(path).is_file():
                raise InputError(f"--weights: {key}: file not found: {path}")
            self.paths[key] = path

    def make(self, name: str, cls: type[Method], given: Mapping[str, Any]) -> Method:
        """Make a method with the files that are for it.

        Raises:
            InputError: It needs one that is not there, or an argument is out of its range.
        """
        own = cls(**given).arguments()
        files = {key: path for key, path in self.paths.items() if own.get(WEIGHTS[key][1]) == WEIGHTS[key][2]}
        self._used |= files.keys()
        made = cls(**{**given, **{WEIGHTS[key][0]: path for key, path in files.items()}})
        if own.get("xyz") == "point_mae" and made.arguments()["xyz_weights"] == PRETRAINED:
            raise InputError(f"--weights: {name} needs point_mae=FILE, Point-MAE's published checkpoint; or --bundled")
        return made

    def check_used(self) -> None:
        """Refuse files that no method has taken.

        Raises:
            InputError: There is one.
        """
        for key in self.paths.keys() - self._used:
            raise InputError(f"--weights: {key}: no chosen method takes it")


@dataclass(frozen=True, eq=False)
class Run:
    """A method with its arguments, and how it is fitted and evaluated.

    Attributes:
        name: Name of the run, for messages.
        model: The method, not fitted.
        shots: Training images of a few-shot run, which has no validation images; None takes all.
        n_thresholds: Thresholds that AUPRO samples; None is the exact curve.
    """

    name: str
    model: Method
    shots: int | None = None
    n_thresholds: int | None = 100

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments that results depend on, JSON-able."""
        found: dict[str, Any] = json.loads(json.dumps(self.model.arguments()))
        del found["device"]
        return found

    @cached_property
    def key(self) -> str:
        """Name of the run's folder: runs of the same key are the same."""
        return f"{self.model.name}-{_digest([self.arguments, self.shots, self.n_thresholds])}"

    @cached_property
    def fit(self) -> str:
        """The same of what its fit depends on."""
        kept = {name: one for name, one in self.arguments.items() if name not in self.model.prediction_arguments}
        return f"{self.model.name}-{_digest([kept, self.shots])}"

    @property
    def own_pixels(self) -> bool:
        """Whether P-AUROC is of other maps than AUPRO is: CFM's published code divides them by other means."""
        model = self.model
        return isinstance(model, CFM) and model.reading("divide_by_means") and model.normalize_for == "aupro"


@dataclass(frozen=True)
class _Data:
    train: SampleDataset
    validation: SampleDataset | None
    test: SampleDataset
    left_out: Mapping[str, str]


def measure(job: Job, runs: Iterable[Run]) -> Found:
    """Fit and evaluate runs on all categories; what cannot be measured is named in the job's notes and left out."""
    groups: dict[str, dict[str, Run]] = {}
    for run in runs:
        groups.setdefault(run.fit, {}).setdefault(run.key, run)
    found: Found = {}
    for group in groups.values():
        # Those with the method's own values first: the others may be cut from them.
        own = sorted(group.values(), key=lambda run: len(_changes(run.model, type(run.model)())))
        found |= _measure_group(job, own)
    return found


def _measure_group(job: Job, runs: list[Run]) -> Found:
    data = dict(_opened(job, runs[0]))
    found: Found = {run.key: {} for run in runs}
    shared: dict[str, Shared | None] = {}
    for category in data:
        fitted: list[Method] = []
        for run in runs:
            begin = time.perf_counter()
            try:
                own = _measured(job, run, category, data, fitted, shared)
            except MmadBankError as error:
                job.leave_out(f"{run.name}, {category}", error)
                continue
            found[run.key][category] = own
            job.notes += [f"{run.name}, {category}: {job.worded(note)}" for note in own["notes"]]
            auroc = own["rows"][FUSED]["image_auroc"]
            words = "undefined" if auroc is None else f"{auroc:.3f}"
            say(f"{run.name}, {category}: I-AUROC {words}, {time.perf_counter() - begin:.0f} s")
        for run in runs:
            remove_stages(_fits(job, run) / category)
    return found


def _measured(
    job: Job, run: Run, category: str, data: Mapping[str, _Data], fitted: list[Method], shared: dict[str, Shared | None]
) -> dict[str, Any]:
    """Fit and evaluate a run on one category, unless an earlier job has; return what the tables need."""
    own = data[category]
    stages = Stages(job.root / "papers" / run.key / category, _fingerprint(run, own, data))

    def make(path: Path) -> None:
        begin = time.perf_counter()
        model = _derived(run.model, fitted)
        if model is None:
            if run.key not in shared:
                shared[run.key] = _shared(job, run, data)
            model = copy.deepcopy(run.model).fit(
                own.train, validation=own.validation, workdir=_fits(job, run) / category, shared=shared[run.key]
            )
            fitted.append(model)
        seconds = time.perf_counter() - begin
        path.write_text(json.dumps(_evaluated(run, model, own, seconds)) + "\n")

    found: dict[str, Any] = json.loads(stages.run("results.json", make).read_text())
    return found


def _derived(model: Method, fitted: Iterable[Method]) -> Method | None:
    """Return a fitted method with the arguments of one that is not, if one of those there can be used for it."""
    for one in fitted:
        try:
            return one.with_arguments(**_changes(model, one))
        except InputError:
            continue
    return None


def _changes(model: Method, other: Method) -> dict[str, Any]:
    """Return the prediction arguments in which a method differs from another."""
    own, others = model.arguments(), other.arguments()
    return {name: own[name] for name in sorted(model.prediction_arguments) if own[name] != others[name]}


def _shared(job: Job, run: Run, data: Mapping[str, _Data]) -> Shared | None:
    """Train what the categories share, if there are several."""
    if len(data) < 2 or not run.model.parts_to_train():
        return None
    train, validation = ({name: getattr(one, split) for name, one in data.items()} for split in ("train", "validation"))
    return train_shared(run.model, train, validation=validation, workdir=_fits(job, run))


def _fits(job: Job, run: Run) -> Path:
    return job.root / "fits" / run.key


def _evaluated(run: Run, model: Method, data: _Data, seconds: float) -> dict[str, Any]:
    evaluation = evaluate(model, data.test, limits=LIMITS, n_thresholds=run.n_thresholds)
    found = _described(evaluation, seconds, {**data.left_out, **model.skipped_})
    if run.shots is not None and len(data.train) < run.shots:
        found["notes"].append(f"fitted on {len(data.train)} images in place of {run.shots}: there are no more")
    if run.own_pixels:
        other = evaluate(model.with_arguments(normalize_for="p_auroc"), data.test, limits=LIMITS[:1])
        found["rows"][FUSED]["pixel_auroc"] = other.metrics[FUSED].pixel_auroc
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Data


def _opened(job: Job, run: Run) -> Iterator[tuple[str, _Data]]:
    """Yield the categories with their samples, prepared as a run's method takes them."""
    for category in job.categories:
        try:
            prepared = _prepared(job, run.model, category)
            left_out = _left_out(prepared)
            train, validation = _training(run, prepared, category)
            yield category, _Data(train, validation, open_dataset(prepared, category, "test"), left_out)
        except MmadBankError as error:
            job.leave_out(f"{run.name}, {category}", error)


def _prepared(job: Job, model: Method, category: str) -> Path:
    """Prepare a category with a method's recipe, once for all methods that share it."""
    size = model.image_size
    recipe = "eyecandies" if job.layout == "eyecandies" else type(model).preparation
    target = job.root / "prepared" / f"{recipe}-{size}" / category
    prepare(job.data, target, Preprocessing.recipe(recipe, size=size), categories=[category], layout=job.layout)
    return target


def _left_out(prepared: Path) -> dict[str, str]:
    failed: dict[str, str] = json.loads((prepared / "prepared.json").read_text())["failed"]
    return failed


def _training(run: Run, data: Path, category: str) -> tuple[SampleDataset, SampleDataset | None]:
    """Return the training and validation samples; a few-shot run has none of the latter, as some data sets do."""
    try:
        train = open_dataset(data, category, "train")
    except InputError as error:  # where none could be prepared, the reason is that of the first one
        raise InputError(next(iter(_left_out(data).values()), str(error))) from error
    if run.shots is not None:
        return few_shot(train, min(run.shots, len(train)), seed=0), None
    try:
        return train, open_dataset(data, category, "validation")
    except InputError:
        return train, None


# ---------------------------------------------------------------------------------------------------------------------
# Results


def _fingerprint(run: Run, own: _Data, data: Mapping[str, _Data]) -> dict[str, Any]:
    """Say what a result depends on: program, arguments, weight files, samples, and who shares a training."""
    known = (run.arguments.get(argument) for argument in dict.fromkeys(row[0] for row in WEIGHTS.values()))
    files = [Path(name) for name in known if name is not None]
    splits = [split.records if split else [] for split in (own.train, own.validation, own.test)]
    content = {
        "version": versions()["mmad-bank"],
        "arguments": run.arguments,
        "weights": [[str(file), file.stat().st_mtime_ns] for file in files if file.is_file()],
        "samples": [[[r.id, r.changed] for r in records] for records in splits],
    }
    if run.model.parts_to_train():
        content["shared"] = sorted(data) if len(data) > 1 else []
    return content


def _described(evaluation: Evaluation, seconds: float, left_out: Mapping[str, str]) -> dict[str, Any]:
    failed = {**left_out, **evaluation.failed}
    notes = [f"sample left out: {reason}" for reason in failed.values()]
    notes += [f"{METRICS[name]} undefined: {reason}" for name, reason in evaluation.metrics[FUSED].undefined.items()]
    shared = {"images": len(evaluation.scores), "fit_s": seconds, "seconds_per_image": evaluation.seconds}
    rows = {part: {**_numbers(metrics), **shared} for part, metrics in evaluation.metrics.items()}
    return {"rows": rows, "notes": notes}


def _numbers(metrics: Metrics) -> dict[str, float | None]:
    aupro = {f"aupro_{100 * limit:g}": value for limit, value in metrics.aupro.items()}
    return {"image_auroc": metrics.image_auroc, "pixel_auroc": metrics.pixel_auroc, **aupro}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def say(line: str) -> None:
    """Tell whoever waits how far the work is."""
    print(f"  {line}", file=sys.stderr, flush=True)
