"""Tables of the papers by name: all their rows in their order, with what we measure beside what they print.

A row that one of our methods can run is fitted with its paper's arguments; the others are quoted. Without ``--data``
the rows run on synthetic data. Rows of speed are measured as by the part inference.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import published
from common import Column, Table

from mmad_bank.cli._arguments import argument_named, parse_settings
from mmad_bank.errors import InputError
from mmad_bank.methods import Method, method_class
from mmad_bank.synthetic import write_synthetic
from mmad_bank.synthetic.dataset import CATEGORIES
from parts import inference
from parts.accuracy import FULL, QUICK
from parts.rows import SET_UP, Plan, chosen_tables, plans_of
from parts.runs import NAMES, Found, Job, chosen_of, job_of, measure

OURS, PUBLISHED, QUOTED = "measured here", "published", "quoted"
MODALITIES = {"rgb": "RGB", "xyz": "3D", "both": "RGB + 3D"}


def check(arguments: argparse.Namespace) -> list[Method]:
    """Refuse arguments that the chosen tables cannot take; return the models of their rows.

    Raises:
        InputError: There is one.
    """
    if arguments.data is None:
        chosen_of(_synthetic(arguments), arguments.only)
    return [run.model for plan in plans_of(arguments) for run in plan.runs.values()]


def run(arguments: argparse.Namespace, limits: Mapping[str, float], folder: Path) -> list[Table]:
    """Run the rows of the chosen tables; return each table with all its rows.

    Raises:
        InputError: An argument is wrong, or nothing could be measured.
    """
    plans = plans_of(arguments)
    job = _job(arguments, folder)
    job.bundled = arguments.bundled
    runs = [run for plan in plans for run in plan.runs.values()]
    found = measure(job, runs)
    if runs and not any(found.values()):
        raise InputError(f"nothing could be measured; {job.notes[0]}")
    speeds = _speeds(plans, arguments, limits, folder)
    tables = [table for plan in plans for table in tables_of(plan, job, found, speeds, arguments)]
    tables[-1].notes += job.notes  # they name tables and rows
    return tables


def listing(names: str | None) -> Table:
    """Return the list of the tables that ``--table`` names, or of all.

    Raises:
        InputError: There is no table of such a name.
    """
    heads = {"name": "table", "title": "title", "data": "data set"}
    counts = {"ran": "rows run", "quoted": "quoted", "waiting": "not run yet"}
    columns = [*(Column(*one) for one in heads.items()), *(Column(*one, "d") for one in counts.items())]
    table = Table("Tables of the papers", columns)
    chosen = chosen_tables(names)
    for one in chosen:
        ran, quoted = sum(row.runnable for row in one.rows), sum(row.method is None for row in one.rows)
        facts = {"name": one.name, "title": one.title, "data": NAMES.get(one.data, "settings")}
        table.rows.append({**facts, "ran": ran, "quoted": quoted, "waiting": len(one.rows) - ran - quoted})
    cited = {one.source for one in chosen}
    table.notes = [f"{source}: {citation}." for source, citation in published.sources().items() if source in cited]
    return table


def _job(arguments: argparse.Namespace, root: Path) -> Job:
    """Return the job on ``--data``, or on synthetic data."""
    if arguments.data is not None:
        return job_of(arguments.data, arguments.only, root)
    categories = _synthetic(arguments)
    folder = root / f"synthetic{'-quick' if arguments.quick else ''}-{len(categories)}"
    if not (folder / "data").exists():
        write_synthetic(folder / "data", seed=0, categories=categories, **(QUICK if arguments.quick else FULL))
    job = job_of(folder / "data", arguments.only, folder)
    job.synthetic = True
    return job


def _synthetic(arguments: argparse.Namespace) -> list[str]:
    """Name the categories of synthetic data."""
    return list(CATEGORIES[: 2 if arguments.quick else arguments.categories])


def _speeds(
    plans: Sequence[Plan], arguments: argparse.Namespace, limits: Mapping[str, float], folder: Path
) -> dict[str, dict[str, float]]:
    """Measure speed and memory for the rows that have them, each kind of run once; return them by run and row."""
    contestants: dict[str, inference.Contestant] = {}
    names: dict[str, str] = {}
    for plan in plans:
        for key, (method, changes) in plan.speeds.items():
            name = f"{plan.table.name} {key}"
            alike = (other for other, own in contestants.items() if own == (method, changes))
            names[name] = next(alike, name)
            contestants.setdefault(names[name], (method, changes))
    if not contestants:
        return {}
    measured = {one.name: one for one in inference.measured(contestants, arguments, limits, folder / "speed")}
    return {name: {"fps": measured[own].fps, "memory_mb": measured[own].memory / 1e6} for name, own in names.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Tables


_HEAD = [Column("label", "row"), Column("modality", "data"), Column("source", "figures")]
_SETTINGS = {
    "learning rate": ("{student_lr}", "cosine from {sdf_lr}"), "batch size": ("{student_batch}", "{sdf_batch}"),
    "mask": ("yes", "-"), "dynamic factor": ("cosine, {quantiles[0]} to {quantiles[1]}", "-"),
    "points in a patch": ("-", "{patch_size}"),
}  # fmt: skip
"""MDSS's settings (table 1) in words of our arguments. Mask and cosines are fixed in its code."""


def tables_of(
    plan: Plan, job: Job, found: Found, speeds: Mapping[str, Mapping[str, float]], arguments: argparse.Namespace
) -> list[Table]:
    """Return a table of a paper: one by category for each metric that has such figures, and one of means."""
    if plan.table.settings:
        return [_settings(plan, arguments)]
    own = plan.table.metrics
    split = [name for name in own if any(name in row.figures and row.figures[name].by_category for row in
                                         plan.table.rows)]  # fmt: skip
    made = [_by_category(plan, job, found, name) for name in split]
    if split != list(own) or len(own) > 1:
        made.append(_means(plan, job, found, speeds))
    made[-1].notes += _notes(plan, job, arguments)
    return made


def _by_category(plan: Plan, job: Job, found: Found, metric: str) -> Table:
    columns = [Column(name, name, ".3f") for name in job.categories]
    title = f"{plan.table.name}, {published.METRICS[metric]}: {plan.table.title}"
    table = Table(f"{title} ({job.title})", [*_HEAD, *columns, Column("mean", "mean", ".3f")])
    for row, measured in _lines(plan):
        if measured:
            values = {name: one[metric] for name, one in _results(plan, row, found).items()}
            table.rows.append({**_head(row, OURS), **values, "mean": _mean(values)})
        else:
            figure = row.figures.get(metric, published.Figure())
            known = {name: figure.by_category[name] for name in job.categories if name in figure.by_category}
            table.rows.append({**_head(row, _source(plan, row)), **known, "mean": figure.mean})
    return table


def _means(plan: Plan, job: Job, found: Found, speeds: Mapping[str, Mapping[str, float]]) -> Table:
    metrics = plan.table.metrics
    formats = {"fps": ".2f", "memory_mb": ".0f"}
    columns = [Column(name, published.METRICS[name], formats.get(name, ".3f")) for name in metrics]
    counted = Column("counted", "categories", "d")
    table = Table(f"{plan.table.name}: {plan.table.title} ({job.title})", [*_HEAD, *columns, counted], headline=True)
    for row, measured in _lines(plan):
        if measured:
            results = _results(plan, row, found)
            means = {name: _mean({key: one.get(name) for key, one in results.items()}) for name in metrics}
            own = {**means, **speeds.get(f"{plan.table.name} {row.key}", {})}
            shared = {"counted": len(results), "by_category": results}
            table.rows.append({**_head(row, OURS), **own, **shared})
        else:
            known = {name: figure.mean for name, figure in row.figures.items()}
            table.rows.append({**_head(row, _source(plan, row)), **known, "counted": 10})
    return table


def _lines(plan: Plan) -> Iterator[tuple[published.Row, bool]]:
    """Yield the paper's rows in its order, with False for what is printed and then True for what was measured."""
    for row in plan.table.rows:
        yield row, False
        if row.key in plan.runs:
            yield row, True


def _head(row: published.Row, source: str) -> dict[str, Any]:
    label = row.label if row.note is None else f"{row.label} ({row.note})"
    return {"row": row.key, "label": label, "modality": MODALITIES[row.modality], "source": source}


def _source(plan: Plan, row: published.Row) -> str:
    if row.method is None:
        return QUOTED
    return PUBLISHED if row.key in plan.runs else f"{PUBLISHED}, not run"


def _results(plan: Plan, row: published.Row, found: Found) -> dict[str, Mapping[str, Any]]:
    """Return what was measured for a row, by category."""
    return {category: one["rows"][row.result] for category, one in found[plan.runs[row.key].key].items()}


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return statistics.mean(known) if known else None


def _settings(plan: Plan, arguments: argparse.Namespace) -> Table:
    """Return a table of settings, ours beside the published ones."""
    cls = method_class(SET_UP)
    words = [word for word in arguments.settings or () if argument_named(cls, word) is not None]
    own = cls(**parse_settings(cls, words).arguments).arguments()
    columns = [Column("setting", "setting")]
    for number, head in enumerate(plan.table.heads):
        columns += [Column(f"published_{number}", f"{head}, published"), Column(f"ours_{number}", f"{head}, ours")]
    table = Table(f"{plan.table.name}: {plan.table.title}", columns)
    for setting, printed in plan.table.settings.items():
        row = {"setting": setting, "row": setting}
        for number, (theirs, form) in enumerate(zip(printed, _SETTINGS[setting], strict=True)):
            row |= {f"published_{number}": theirs, f"ours_{number}": form.format(**own)}
        table.rows.append(row)
    table.notes = [f"As published in {plan.table.source}: {published.sources()[plan.table.source]}."]
    return table


# ---------------------------------------------------------------------------------------------------------------------
# Notes


def _notes(plan: Plan, job: Job, arguments: argparse.Namespace) -> list[str]:
    table = plan.table
    notes = [f"As published in {table.source}: {published.sources()[table.source]}."]
    notes += [f"Quoted only, not run: {_quoted(table)}."] if any(row.method is None for row in table.rows) else []
    notes += [f"Not run: {row.label} needs {row.needs}." for row in table.rows if row.needs is not None]
    notes += _conditions(plan, job, arguments)
    notes += [_marked(plan, mark) for mark in table.marks]
    return [*notes, *plan.notes]


def _quoted(table: published.Table) -> str:
    names = dict.fromkeys(row.label.split(",")[0] for row in table.rows if row.method is None)
    return "; ".join(f"{name} ({published.baselines()[name]})" for name in names)


def _marked(plan: Plan, mark: published.Mark) -> str:
    of = [] if mark.row is None else [plan.rows[mark.row].label]
    of += [] if mark.metric is None else [published.METRICS[mark.metric]]
    words = f" ({', '.join(of)})" if of else ""
    return f"{mark.kind.capitalize()}{words}: {mark.why}"


def _conditions(plan: Plan, job: Job, arguments: argparse.Namespace) -> Iterator[str]:
    """Yield what sets our figures apart from the published ones."""
    table = plan.table
    published_data = NAMES[table.data]
    if job.name != published_data:
        yield f"The published figures are of {published_data}, ours of {job.name}."
    elif len(job.categories) < 10:
        yield f"The published means are of ten categories, ours of {len(job.categories)}."
    if arguments.quick:
        yield "A run of --quick: tiny networks, trainings of two steps. Its figures mean nothing."
    elif arguments.bundled:
        yield "The published figures are of the papers' extractors, ours of the bundled ones."
    if any(name.startswith("aupro") for name in table.metrics):
        n = plan.n_thresholds(arguments)
        yield f"Our AUPRO {'is that of the exact curve' if n is None else f'samples {n} thresholds'}."
    if arguments.recipe is not None:
        yield f"Our recipe: {arguments.recipe}."
    if plan.speeds:
        yield (
            f"fps and MB: published on {table.machine}; ours on this machine, with random weights, as by the part"
            " inference."
        )
