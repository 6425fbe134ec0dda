"""The papers' tables on MVTec 3D-AD and Eyecandies (or any folder in their layouts), with the published ones beside.

Every category is prepared once with a method's recipe, every method is fitted with its paper's arguments, its own
result and those of its banks or branches are measured. What is done stays in ``--workdir``, where a later run goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import published
from common import Column, Table, versions, working_folder

from mmad_bank._internal.resume import Stages, remove_stages
from mmad_bank.cli._values import check_device
from mmad_bank.data import Preprocessing, SampleDataset, categories_of, few_shot, open_dataset, prepare
from mmad_bank.data.layouts import layout_of
from mmad_bank.errors import InputError, MmadBankError
from mmad_bank.evaluation import FUSED, Evaluation, Metrics, evaluate
from mmad_bank.methods import Method, method_class
from parts.accuracy import CONTESTANTS

METHODS = ("PatchCore", "BTF", "M3DM", "LSFA", "CFM", "CFM-M", "CFM-S", "CFM-T", "MDSS")
"""Those of the accuracy benchmark's contestants that are set up as in a paper."""
LIMITS = (0.3, 0.1, 0.05, 0.01)
WEIGHTS = {
    "rgb": ("rgb_weights", "rgb", "vit_base_patch8_224.dino"),
    "wide_resnet": ("rgb_weights", "rgb", "wide_resnet50_2.tv_in1k"),
    "wide_resnet_timm": ("rgb_weights", "rgb", "wide_resnet50_2.racm_in1k"),
    "point_mae": ("xyz_weights", "xyz", "point_mae"),
    "uff": ("uff_weights", "uff_weights", "train"),
    "pdn": ("teacher", "teacher", "distil"),
}
"""Weight files by name: the constructor's argument that takes one, for methods in which another has this value."""
NAMES = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies"}
SUMMARY = {name: published.METRICS[name] for name in published.ACCURACIES}
"""Headings of what is measured, by the key in a row."""
OURS = "measured here"


@dataclass
class Job:
    """Job of a measurement: the data set, and what all methods share."""

    data: Path
    layout: str
    categories: list[str]
    shots: int | None
    bundled: bool
    root: Path
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Words for what the tables are of."""
        few = f", {self.shots} training images" if self.shots else ""
        bundled = ", bundled extractors" if self.bundled else ""
        return f"{NAMES.get(self.layout, self.data.resolve().name)}{few}{bundled}"

    def worded(self, reason: object) -> str:
        """Return a reason in one line, its files named from the data set's folder on: results are for others too."""
        line = " ".join(str(reason).split())
        for folder in (self.data, self.data.resolve(), self.root):
            line = line.replace(f"{folder}/", "")
        return line


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and evaluate the chosen methods on all categories; a category that fails is named and left out.

    Raises:
        SystemExit: An argument is wrong, or nothing could be measured; the message is one line.
    """
    del limits
    with working_folder(arguments.workdir, "papers") as folder:
        try:
            models = _models(arguments)
            job = _job(arguments, folder)
        except MmadBankError as error:
            sys.exit(f"error: {error}")
        rows = [row for name, model in models.items() for row in _measure_all(job, name, model)]
    if not rows:
        sys.exit(f"error: --data: nothing could be measured; {job.notes[0]}")
    tables = [_by_category(job, rows, key) for key in ("image_auroc", "aupro_30")]
    return [*tables, _summary(job, rows)]


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def _job(arguments: argparse.Namespace, root: Path) -> Job:
    known = categories_of(arguments.data)
    chosen = arguments.only.split(",") if arguments.only else known
    for name in chosen:
        if name not in known:
            raise InputError(f"--only: expected some of {', '.join(known)}, found {name!r}")
    if arguments.few_shot is not None and arguments.few_shot < 1:
        raise InputError(f"--few-shot: expected at least 1 training image, found {arguments.few_shot}")
    layout = layout_of(arguments.data)
    return Job(arguments.data, layout, chosen, arguments.few_shot, arguments.bundled, root)


def _models(arguments: argparse.Namespace) -> dict[str, Method]:
    """Make the chosen methods, not fitted; whatever is wrong with them is said before the work."""
    device, weights = str(check_device(arguments.device)), _weights(arguments.weights or [])
    used: set[str] = set()
    models = {}
    for name in _chosen(arguments.methods):
        method, changes = CONTESTANTS[name]
        cls = method_class(method)
        given = {**(cls.bundled_arguments() if arguments.bundled else {}), **changes, "device": device}
        own = cls(**given).arguments()
        files = {key: path for key, path in weights.items() if own.get(WEIGHTS[key][1]) == WEIGHTS[key][2]}
        used |= files.keys()
        models[name] = cls(**given, **{WEIGHTS[key][0]: path for key, path in files.items()})
        if own.get("xyz") == "point_mae" and "point_mae" not in files:
            raise InputError(f"--weights: {name} needs point_mae=FILE, Point-MAE's published checkpoint; or --bundled")
    for key in weights.keys() - used:
        raise InputError(f"--weights: {key}: no chosen method takes it")
    return models


def _chosen(wanted: Sequence[str] | None) -> list[str]:
    for word in wanted or ():
        if not any(word in (name, CONTESTANTS[name][0]) for name in METHODS):
            raise InputError(f"--methods: expected some of {', '.join(METHODS)} for the part papers, found {word!r}")
    return [name for name in METHODS if wanted is None or name in wanted or CONTESTANTS[name][0] in wanted]


def _weights(pairs: Iterable[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, _, path = pair.partition("=")
        if key not in WEIGHTS or not path:
            raise InputError(f"--weights: expected NAME=FILE, NAME one of {', '.join(WEIGHTS)}, found {pair!r}")
        if not Path(path).is_file():
            raise InputError(f"--weights: {key}: file not found: {path}")
        found[key] = path
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def _measure_all(job: Job, name: str, model: Method) -> list[dict[str, Any]]:
    """Measure a method on all categories; return a row for each category and result."""
    rows: list[dict[str, Any]] = []
    for category in job.categories:
        begin = time.perf_counter()
        try:
            found = _measure(job, name, model, category)
        except MmadBankError as error:
            line = f"{name}, {category}: {job.worded(error)}"
            job.notes.append(f"Left out: {line}")
            print(f"  {line}", file=sys.stderr, flush=True)
            continue
        job.notes += [f"{name}, {category}: {job.worded(note)}" for note in found["notes"]]
        rows += [{"method": name, "result": part, "category": category, **own} for part, own in found["rows"].items()]
        auroc = found["rows"][FUSED]["image_auroc"]
        said = "undefined" if auroc is None else f"{auroc:.3f}"
        print(f"  {name}, {category}: I-AUROC {said}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return rows


def _measure(job: Job, name: str, model: Method, category: str) -> dict[str, Any]:
    """Fit and evaluate a method on one category, unless an earlier run has; return what the tables need."""
    data = _prepared(job, model, category)
    train, validation = _training(job, data, category)
    test = open_dataset(data, category, "test")
    folder = job.root / "papers" / re.sub(r"[^a-z0-9]+", "-", name.lower()) / category
    stages = Stages(folder, _fingerprint(model, train, validation, test))

    def make(path: Path) -> None:
        begin = time.perf_counter()
        fitted = copy.deepcopy(model).fit(train, validation=validation, workdir=folder / "fit")
        seconds = time.perf_counter() - begin
        left_out = {**_left_out(data), **fitted.skipped_}
        path.write_text(json.dumps(_described(evaluate(fitted, test, limits=LIMITS), seconds, left_out)) + "\n")

    found: dict[str, Any] = json.loads(stages.run("results.json", make).read_text())
    remove_stages(folder / "fit")
    return found


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


def _training(job: Job, data: Path, category: str) -> tuple[SampleDataset, SampleDataset | None]:
    """Return the training and validation samples; a few-shot run has none of the latter, as some data sets do."""
    try:
        train = open_dataset(data, category, "train")
    except InputError as error:  # where none could be prepared, the reason is that of the first one
        raise InputError(next(iter(_left_out(data).values()), str(error))) from error
    if job.shots is not None:
        return few_shot(train, job.shots, seed=0), None
    try:
        return train, open_dataset(data, category, "validation")
    except InputError:
        return train, None


def _fingerprint(model: Method, *splits: SampleDataset | None) -> dict[str, Any]:
    """Say what a result depends on: program, arguments, weight files, samples."""
    arguments = {name: value for name, value in model.arguments().items() if name != "device"}
    files = [Path(arguments[name]) for name in dict.fromkeys(row[0] for row in WEIGHTS.values()) if name in arguments]
    content = {
        "version": versions()["mmad-bank"],
        "arguments": arguments,
        "weights": [[str(file), file.stat().st_mtime_ns] for file in files if file.is_file()],
        "samples": [[[r.id, r.rgb.stat().st_mtime_ns] for r in split.records] if split else [] for split in splits],
    }
    return json.loads(json.dumps(content))


def _described(evaluation: Evaluation, seconds: float, left_out: Mapping[str, str]) -> dict[str, Any]:
    failed = {**left_out, **evaluation.failed}
    notes = [f"sample left out: {reason}" for reason in failed.values()]
    for metric, reason in evaluation.metrics[FUSED].undefined.items():
        notes.append(f"{SUMMARY.get(metric, 'AUPRO')} undefined: {reason}")
    shared = {"images": len(evaluation.scores), "fit_s": seconds, "seconds_per_image": evaluation.seconds}
    rows = {part: {**_numbers(metrics), **shared} for part, metrics in evaluation.metrics.items()}
    return {"rows": rows, "notes": notes}


def _numbers(metrics: Metrics) -> dict[str, float | None]:
    aupro = {f"aupro_{100 * limit:g}": value for limit, value in metrics.aupro.items()}
    return {"image_auroc": metrics.image_auroc, "pixel_auroc": metrics.pixel_auroc, **aupro}


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _results(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Mapping[str, Any]]]:
    """Sort rows by method and result, then by category."""
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["method"], row["result"]), {})[row["category"]] = row
    return found


def _mean(own: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    """Return the mean over the categories in which the metric is defined."""
    values = [row[key] for row in own.values() if row[key] is not None]
    return statistics.mean(values) if values else None


def _by_category(job: Job, rows: Sequence[Mapping[str, Any]], key: str) -> Table:
    columns = [Column(name, name, ".3f") for name in job.categories]
    table = Table(f"{SUMMARY[key]}: {job.title}", [*_HEAD, *columns, Column("mean", "mean", ".3f")])
    for (method, part), own in _results(rows).items():
        values = {category: row[key] for category, row in own.items()}
        table.rows.append({"method": method, "result": part, "source": OURS, **values, "mean": _mean(own, key)})
        for one in _published(job, method, part):
            figure = one.figures.get(key, published.Figure())
            known = {name: figure.by_category.get(name) for name in job.categories}
            table.rows.append({"method": method, "result": part, "source": one.source, **known, "mean": figure.mean})
    table.notes = _notes(job, table, rows)
    return table


def _summary(job: Job, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column(key, name, ".3f") for key, name in SUMMARY.items()]
    table = Table(f"Means over categories: {job.title}", [*_HEAD, *columns, _COUNT], headline=True)
    for (method, part), own in _results(rows).items():
        means = {key: _mean(own, key) for key in SUMMARY}
        each = {category: dict(row) for category, row in own.items()}
        shared = {"method": method, "result": part}
        table.rows.append({**shared, "source": OURS, **means, "counted": len(own), "by_category": each})
        for one in _published(job, method, part):
            known = {key: one.mean(key) for key in SUMMARY}
            table.rows.append({**shared, "source": one.source, **known, "counted": 10})
    found = [one for method, part in _results(rows) for one in _published(job, method, part)]
    doubts = dict.fromkeys(f"{one.source}, {mark}" for one in found for mark in one.marks)
    table.notes = [*_notes(job, table, rows), *doubts, *job.notes]
    return table


_HEAD = [Column("method", "method"), Column("result", "result"), Column("source", "source")]
_COUNT = Column("counted", "categories", "d")


def _published(job: Job, method: str, part: str) -> list[published.Accuracy]:
    return published.accuracy_of(job.layout, *CONTESTANTS[method], part, job.shots)


def _notes(job: Job, table: Table, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    quoted = [row["source"] for row in table.rows if row["source"] != OURS]
    notes = [
        "Means are over the categories that have a value, published ones over the data set's ten. A published mean that"
        " is not at hand is computed from the categories."
    ]
    notes += [f"As published in {name}: {paper}." for name, paper in published.sources().items()
              if any(source.startswith(name) for source in quoted)]  # fmt: skip
    if quoted and job.bundled:
        notes.append("The published figures are of the papers' extractors, ours of the bundled ones.")
    fewest = min(len(own) for own in _results(rows).values())
    if quoted and fewest < 10:
        notes.append(f"The published means are of ten categories, ours of as few as {fewest}.")
    return notes
