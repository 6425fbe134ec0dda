"""The papers' tables on MVTec 3D-AD and Eyecandies (or any folder in their layouts), with the published ones beside.

Without ``--table``: every method with its paper's arguments, its own result and those of its banks or branches. With
it, tables of the papers by name, see tables.py beside this file. What is done stays in ``--workdir``, where a later run
goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import published
from common import Column, Table, working_folder

from mmad_bank.cli._values import check_device
from mmad_bank.errors import InputError, MmadBankError
from mmad_bank.methods import Method, method_class
from parts import tables
from parts.accuracy import CONTESTANTS
from parts.runs import Files, Found, Job, Run, check_modalities, job_of, measure

METHODS = ("PatchCore", "BTF", "ShapeGuided", "M3DM", "LSFA", "CFM", "CFM-M", "CFM-S", "CFM-T", "MDSS", "AST")
"""Those of the accuracy benchmark's contestants that are set up as in a paper."""
SUMMARY = {name: published.METRICS[name] for name in published.ACCURACIES}
"""Headings of what is measured, by the key in a row."""
OURS = "measured here"


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that this part cannot take; nothing is written.

    Raises:
        InputError: There is one.
    """
    job = None if arguments.data is None else job_of(arguments.data, arguments.only, Path())
    if arguments.table is None and arguments.few_shot is not None and arguments.few_shot < 1:
        raise InputError(f"--few-shot: expected at least 1 training image, found {arguments.few_shot}")
    models = tables.check(arguments) if arguments.table is not None else list(_models(arguments).values())
    if job is not None:
        check_modalities(job, models)


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and evaluate the chosen methods, or the rows of tables; a category that fails is named and left out.

    Raises:
        SystemExit: Nothing could be measured; the message is one line.
    """
    try:
        with working_folder(arguments.workdir, "papers") as folder:
            return _all_methods(arguments, folder) if arguments.table is None else tables.run(arguments, limits, folder)
    except MmadBankError as error:
        sys.exit(f"error: {error}")


def _all_methods(arguments: argparse.Namespace, folder: Path) -> list[Table]:
    models = _models(arguments)
    job = job_of(arguments.data, arguments.only, folder)
    job.shots, job.bundled = arguments.few_shot, arguments.bundled
    runs = {name: Run(name, model, job.shots) for name, model in models.items()}
    rows = _rows(runs, measure(job, runs.values()))
    if not rows:
        raise InputError(f"nothing could be measured; {job.notes[0]}")
    by_category = [_by_category(job, rows, key) for key in ("image_auroc", "aupro_30")]
    return [*by_category, _summary(job, rows)]


def _rows(runs: Mapping[str, Run], found: Found) -> list[dict[str, Any]]:
    """Return a row for each run, category and result."""
    return [
        {"method": name, "result": part, "category": category, **numbers}
        for name, run in runs.items() for category, own in found[run.key].items()
        for part, numbers in own["rows"].items()
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def _models(arguments: argparse.Namespace) -> dict[str, Method]:
    """Make the chosen methods, not fitted; whatever is wrong with them is said before the work."""
    files = Files(arguments.weights or [])
    device = str(check_device(arguments.device))
    models = {}
    for name in _chosen(arguments.methods):
        method, changes = CONTESTANTS[name]
        cls = method_class(method)
        bundled = cls.bundled_arguments() if arguments.bundled else {}
        models[name] = files.make(name, cls, {**bundled, **changes, "device": device})
    files.check_used()
    return models


def _chosen(wanted: Sequence[str] | None) -> list[str]:
    for word in wanted or ():
        if not any(word in (name, CONTESTANTS[name][0]) for name in METHODS):
            raise InputError(f"--methods: expected some of {', '.join(METHODS)} for the part papers, found {word!r}")
    return [name for name in METHODS if wanted is None or name in wanted or CONTESTANTS[name][0] in wanted]


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
