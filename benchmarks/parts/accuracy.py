"""I-AUROC, P-AUROC and AUPRO of the methods on synthetic data sets, with bundled extractors.

Every seed is a data set of its own: parts, defects, noise. A method is fitted for every category of every one; its
banks and branches are measured beside it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import Column, Table, chosen, working_folder

from mmad_bank._internal.resume import Stages
from mmad_bank._internal.tensor_files import write_tensors
from mmad_bank.data import Preprocessing, open_dataset, prepare
from mmad_bank.evaluation import FUSED, Evaluation, evaluate
from mmad_bank.methods import Method, method_class
from mmad_bank.methods.mdss import MDSS
from mmad_bank.synthetic import write_synthetic
from mmad_bank.synthetic.dataset import CATEGORIES, DEFECTS

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "PatchCore": ("patchcore", {}),
    "BTF": ("btf", {}),
    "M3DM": ("m3dm", {}),
    "M3DM, concatenated": ("m3dm", {"banks": ("fusion",), "fusion": "concat"}),
    "M3DM, two banks": ("m3dm", {"banks": ("xyz", "rgb")}),
    "M3DM, two banks added": ("m3dm", {"banks": ("xyz", "rgb"), "decision": "add"}),
    "LSFA": ("lsfa", {}),
    "LSFA, not adapted": ("lsfa", {"adaptation": "none"}),
    "CFM": ("cfm", {}),
    "CFM, sum": ("cfm", {"aggregation": "sum"}),
    "CFM, max": ("cfm", {"aggregation": "max"}),
    "CFM-M": ("cfm", {"variant": "M"}),
    "CFM-S": ("cfm", {"variant": "S"}),
    "CFM-T": ("cfm", {"variant": "T"}),
    "MDSS": ("mdss", {}),
    "ShapeGuided": ("shape_guided", {}),
    "ShapeGuided, by reconstructions": ("shape_guided", {"scored_by": "reconstructions"}),
    "AST": ("ast", {}),
}
_POINTS = {"xyz": "point_mae", "xyz_weights": "random", "grid": None}
READINGS: dict[str, tuple[str, dict[str, Any]]] = {
    f"M3DM, {recipe}": ("m3dm", {**_POINTS, "recipe": recipe}) for recipe in ("default", "published", "paper")
}
"""Contestants of the part readings: Point-MAE with random weights on the grids of each recipe."""
_FEW_HELD_OUT = {"calibration": "validation"}  # few images do for a scale, which would not do for a promise
DECISIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "M3DM, DLF": ("m3dm", {}),
    "M3DM, added": ("m3dm", {"decision": "add"}),
    "M3DM, calibrated": ("m3dm", {"decision": "calibrated"}),
    "LSFA, averaged": ("lsfa", {"decision": "add"}),
    "LSFA, calibrated": ("lsfa", {"decision": "calibrated"}),
    "CFM, product": ("cfm", _FEW_HELD_OUT),
    "CFM, calibrated": ("cfm", {"decision": "calibrated", **_FEW_HELD_OUT}),
    "MDSS, aligned": ("mdss", _FEW_HELD_OUT),
    "MDSS, calibrated": ("mdss", {"decision": "calibrated", **_FEW_HELD_OUT}),
    "ShapeGuided, aligned": ("shape_guided", _FEW_HELD_OUT),
    "ShapeGuided, calibrated": ("shape_guided", {"decision": "calibrated", **_FEW_HELD_OUT}),
}
"""Contestants of the part decisions; what a method has learnt for its own decision comes first."""
_ALL = {**CONTESTANTS, **READINGS, **DECISIONS}
PREDICTION_ONLY = {"aggregation", "decision", "scored_by"}
"""Arguments that a fit does not depend on, if it has learnt a method's own decision."""
LIMITS = (0.3, 0.01)
FULL = {"size": 256, "n_train": 30, "n_validation": 6, "n_test": 36}
QUICK = {"size": 128, "n_train": 4, "n_validation": 2, "n_test": 6}
FEW = {"size": 256, "n_train": 12, "n_validation": 4, "n_test": 18}
"""Samples of a data set: in full, for a quick run, and for networks that are slow without a GPU."""

_MEAN_COLUMNS = [
    Column("method", "method"),
    Column("result", "result"),
    Column("image_auroc", "I-AUROC"),
    Column("pixel_auroc", "P-AUROC"),
    Column("aupro", "AUPRO@30"),
    Column("aupro_1", "AUPRO@1"),
]


@dataclass(frozen=True)
class _Job:
    """All contestants of one method on one category of one data set: they share fits."""

    root: Path
    quick: bool
    seed: int
    category: str
    categories: tuple[str, ...]  # of the data set
    names: tuple[str, ...]
    samples: tuple[tuple[str, int], ...]  # what is rendered
    shared: tuple[tuple[str, Any], ...]  # arguments of all constructors


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that this part cannot take.

    Raises:
        InputError: There is one.
    """
    chosen(CONTESTANTS, arguments.methods)


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and evaluate every contestant on every category of every seed's data set."""
    del limits
    rows, title = measured(arguments, chosen(CONTESTANTS, arguments.methods), "accuracy")
    title = f"{title}, bundled extractors"
    return [means(title, rows), _kinds(title, rows), by_category(title, rows)]


def measured(
    arguments: argparse.Namespace,
    names: list[str],
    part: str,
    samples: Mapping[str, int] = FULL,
    shared: Mapping[str, Any] | None = None,
) -> tuple[list[dict[str, Any]], str]:
    """Fit and evaluate contestants on every category of every seed's data set.

    Args:
        arguments: Arguments of the command line.
        names: Names of contestants.
        part: Name of the benchmark's part, for its folder.
        samples: Samples of a data set, unless the run is a quick one.
        shared: Arguments of all constructors.

    Returns:
        Rows by contestant, category, seed and result, and words for what they are of.
    """
    categories = CATEGORIES[: 1 if arguments.quick else arguments.categories]
    seeds = range(arguments.first_seed, arguments.first_seed + (1 if arguments.quick else arguments.seeds))
    rendered = tuple((QUICK if arguments.quick else samples).items())
    with working_folder(arguments.workdir, part) as root, ProcessPoolExecutor(arguments.workers) as pool:
        jobs = [
            _Job(root, arguments.quick, seed, category, categories, own, rendered, tuple((shared or {}).items()))
            for own in _by_method(names) for category in categories for seed in seeds
        ]  # fmt: skip
        done = list(zip(jobs, pool.map(_measure, jobs), strict=True))
    done.sort(key=lambda one: (one[0].seed, categories.index(one[0].category), names.index(one[0].names[0])))
    rows = [row for _, own in done for row in own]
    first = f" from {arguments.first_seed}" if arguments.first_seed else ""
    return rows, f"{len(categories)} synthetic categories × {len(seeds)} seeds{first}"


def _by_method(names: list[str]) -> list[tuple[str, ...]]:
    """Group contestants by method; the last, whose fits take longest, come first, so that no process ends alone."""
    methods = dict.fromkeys(_ALL[name][0] for name in reversed(names))
    return [tuple(name for name in names if _ALL[name][0] == method) for method in methods]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let processes that want to make the same file wait for the one that does."""
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepared(job: _Job, category: str, recipe: str, size: int | None = None) -> Path:
    """Render a category and prepare it with a method's preprocessing, once; in the recipe's size unless in another."""
    settings = Preprocessing.recipe(recipe)
    settings = settings if size is None else replace(settings, size=size)
    sized = "" if settings == Preprocessing.recipe(recipe) else f"-{size}"
    raw = job.root / f"seed-{job.seed}-raw-{category}"
    target = job.root / f"seed-{job.seed}-{recipe}{sized}-{category}"
    with _alone(raw):
        if not raw.exists():
            write_synthetic(raw, seed=job.seed, categories=[category], **dict(job.samples))
        prepare(raw, target, settings, categories=[category], workers=1)
    return target


def _teacher(job: _Job) -> Path:
    """Distil MDSS's teacher on the training images of all categories of a data set, once: one serves them all.

    Its path names the categories by their number, so that results of another teacher are not taken for this one's.
    """
    arguments = _bundled(MDSS, job)
    folder = job.root / f"seed-{job.seed}-teacher-of-{len(job.categories)}"

    def make(path: Path) -> None:
        model = MDSS(**arguments)
        data = {one: _prepared(job, one, model.preparation) for one in job.categories}
        splits = [open_dataset(prepared, one, "train") for one, prepared in data.items()]
        images = torch.stack([sample.rgb for split in splits for sample in split])
        write_tensors(path, model.distil(images).state_dict())
        print(f"  seed {job.seed}: teacher distilled", file=sys.stderr, flush=True)

    with _alone(folder):
        return Stages(folder, json.loads(json.dumps(arguments))).run("teacher.safetensors", make)


def _measure(job: _Job) -> list[dict[str, Any]]:
    """Fit and evaluate a method's contestants on one category; what an earlier run left there is not done again."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    fitted: dict[str, Method] = {}
    for name in job.names:
        arguments = _arguments_of(name, job)
        folder = job.root / "results" / f"seed-{job.seed}-{job.category}-{name.replace(', ', '-').replace(' ', '-')}"
        stages = Stages(folder, json.loads(json.dumps(arguments)))

        def make(path: Path, name: str = name, arguments: dict[str, Any] = arguments) -> None:
            found = _measure_one(name, arguments, job, fitted)
            path.write_text(json.dumps(found) + "\n")
            seconds = found[0]["fit_seconds"]
            own = next(row["image_auroc"] for row in found if row["result"] == FUSED)
            line = f"  seed {job.seed}, {job.category}, {name}: I-AUROC {own:.3f}, fit {seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)

        rows += json.loads(stages.run("rows.json", make).read_text())
    return rows


def _bundled(cls: type[Method], job: _Job) -> dict[str, Any]:
    """Return what all contestants of a method share of their constructor's arguments."""
    few = few_steps(cls) if job.quick else {}
    return {**cls.bundled_arguments(), **dict(job.shared), **few, "seed": job.seed}


def _arguments_of(name: str, job: _Job) -> dict[str, Any]:
    """Return the arguments of a contestant's constructor."""
    method, changes = _ALL[name]
    cls = method_class(method)
    teacher = {"teacher": str(_teacher(job))} if cls is MDSS else {}
    return {**_bundled(cls, job), **teacher, **changes}


def _measure_one(name: str, arguments: dict[str, Any], job: _Job, fitted: dict[str, Method]) -> list[dict[str, Any]]:
    """Fit a contestant, or take a fitted one that differs in prediction only, and evaluate it: one row per result."""
    method, changes = _ALL[name]
    cls, category = method_class(method), job.category
    data = _prepared(job, category, cls.preparation, arguments.get("image_size"))
    train, validation, test = (open_dataset(data, category, split) for split in ("train", "validation", "test"))
    begin = time.perf_counter()
    model = _alike(fitted, method, changes)
    if model is None:
        model = fitted[name] = cls(**arguments).fit(train, validation=validation)
    seconds = time.perf_counter() - begin
    evaluation = evaluate(model, test, limits=LIMITS)
    rows = []
    for part, metrics in evaluation.metrics.items():
        kinds = {kind: evaluation.kinds[kind][part].image_auroc for kind in DEFECTS if kind in evaluation.kinds}
        rows.append({
            "method": name, "result": part, "category": category, "seed": job.seed, "images": len(evaluation.scores),
            "image_auroc": metrics.image_auroc, "pixel_auroc": metrics.pixel_auroc, "aupro": metrics.aupro[0.3],
            "aupro_1": metrics.aupro[0.01], "kinds": kinds, "seconds_per_image": evaluation.seconds,
            "fit_seconds": seconds,
        })  # fmt: skip
    return rows if changes.get("decision") != "calibrated" else _with_ratios(rows, model, evaluation)


def _with_ratios(rows: list[dict[str, Any]], model: Method, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Add to the row of a calibrated decision what was put together, so that other exponents can be tried."""
    assert model.calibrated_ is not None
    parts = {name: torch.tensor([one.parts[name] for one in evaluation.scores]) for name in model.calibrated_.images}
    ratios, labels = model.calibrated_.ratios(parts), [one.label for one in evaluation.scores]
    return [row | ({"ratios": ratios.tolist(), "labels": labels} if row["result"] == FUSED else {}) for row in rows]


def _alike(fitted: Mapping[str, Method], method: str, changes: Mapping[str, Any]) -> Method | None:
    """Return a method that was fitted with the same arguments but those that only prediction reads, with these."""
    wanted = {key: value for key, value in changes.items() if key not in PREDICTION_ONLY}
    for name, model in fitted.items():
        kind, own = _ALL[name]
        if kind == method and {key: value for key, value in own.items() if key not in PREDICTION_ONLY} == wanted:
            defaults = {one.name: one.default for one in model.parameters()}
            keys = PREDICTION_ONLY & (changes.keys() | own.keys())
            return model.with_arguments(**{key: changes.get(key, defaults[key]) for key in keys})
    return None


def few_steps(cls: type[Method]) -> dict[str, Any]:
    """Return arguments that make every training as short as can be."""
    return {name: 2 for name in cls.argument_names() if name.endswith(("_steps", "epochs"))}


def _spread(values: list[dict[str, Any]], key: str) -> str | None:
    """Word the mean over all, and the standard deviation of the seeds' means."""
    found = [(row["seed"], row[key]) for row in values if row[key] is not None]
    if not found:
        return None
    seeds = sorted({seed for seed, _ in found})
    means = [statistics.mean(value for own, value in found if own == seed) for seed in seeds]
    spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
    return f"{statistics.mean(means):.3f}{spread}"


def _grouped(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def means(title: str, rows: list[dict[str, Any]]) -> Table:
    """Make the table of means over categories, with their spread over seeds."""
    table = Table(f"Accuracy: {title}", _MEAN_COLUMNS, headline=True)
    for (method, part), own in _grouped(rows, "method", "result").items():
        values = {column.key: _spread(own, column.key) for column in _MEAN_COLUMNS[2:]}
        table.rows.append({"method": method, "result": part, **values})
    table.notes = [
        "Means over categories and seeds ± standard deviation of the seeds' means. 'result' is the method's own;"
        " the others are its banks or branches alone, of the same fit.",
    ]
    return table


def _kinds(title: str, rows: list[dict[str, Any]]) -> Table:
    columns = [Column("method", "method"), Column("result", "result"), *(Column(kind, kind) for kind in DEFECTS)]
    table = Table(f"I-AUROC by kind of defect: {title}", columns)
    for (method, part), own in _grouped(rows, "method", "result").items():
        flat = [{**row["kinds"], "seed": row["seed"]} for row in own]
        values = {kind: _spread(flat, kind) for kind in DEFECTS if all(kind in row for row in flat)}
        table.rows.append({"method": method, "result": part, **values})
    table.notes = ["A kind's images against the good ones. 'combination' is normal in either modality alone."]
    return table


def by_category(title: str, rows: list[dict[str, Any]]) -> Table:
    """Make the table of each category's figures."""
    columns = [Column("method", "method"), Column("result", "result"), Column("category", "category"),
               Column("image_auroc", "I-AUROC"), Column("aupro", "AUPRO@30"), Column("seeds", "by seed")]  # fmt: skip
    table = Table(f"By category: {title}", columns)
    for (method, part, category), own in _grouped(rows, "method", "result", "category").items():
        each = " ".join(f"{row['image_auroc']:.3f}" for row in own)
        values = {"image_auroc": _spread(own, "image_auroc"), "aupro": _spread(own, "aupro"), "seeds": each}
        table.rows.append({"method": method, "result": part, "category": category, **values})
    return table
