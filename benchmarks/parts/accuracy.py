"""I-AUROC, P-AUROC and AUPRO of the methods on synthetic data sets, with embedded extractors.

Every seed is a data set of its own: parts, defects, noise. A method is fitted for every category of every one; its
banks and branches are measured beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import Column, Table, chosen, working_folder
from safetensors.torch import save_file

from mmad_bank._files import replacing
from mmad_bank._stages import Stages
from mmad_bank.data import Preprocessing, open_dataset, prepare, write_synthetic
from mmad_bank.data.synthetic import CATEGORIES, DEFECTS
from mmad_bank.embedded import embedded_arguments
from mmad_bank.evaluation import FUSED, evaluate
from mmad_bank.methods import Method, method_class
from mmad_bank.methods.mdss import MDSS

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "PatchCore": ("patchcore", {}),
    "BTF": ("btf", {}),
    "M3DM": ("m3dm", {}),
    "M3DM, concatenated": ("m3dm", {"banks": ("fusion",), "fusion": "concat"}),
    "M3DM, two banks added": ("m3dm", {"banks": ("xyz", "rgb"), "decision": "add"}),
    "M3DM, two banks": ("m3dm", {"banks": ("xyz", "rgb")}),
    "LSFA": ("lsfa", {}),
    "LSFA, not adapted": ("lsfa", {"adaptation": "none"}),
    "CFM": ("cfm", {}),
    "CFM, sum": ("cfm", {"aggregation": "sum"}),
    "CFM, max": ("cfm", {"aggregation": "max"}),
    "CFM-M": ("cfm", {"variant": "M"}),
    "CFM-S": ("cfm", {"variant": "S"}),
    "CFM-T": ("cfm", {"variant": "T"}),
    "MDSS": ("mdss", {}),
}
PREDICTION_ONLY = {"aggregation"}
"""Arguments that a fit does not depend on."""
LIMITS = (0.3, 0.01)
FULL = {"size": 256, "n_train": 30, "n_validation": 6, "n_test": 36}
QUICK = {"size": 128, "n_train": 4, "n_validation": 2, "n_test": 6}

_MEAN_COLUMNS = [
    Column("method", "method"),
    Column("result", "result"),
    Column("image_auroc", "I-AUROC"),
    Column("pixel_auroc", "P-AUROC"),
    Column("aupro", "AUPRO@30"),
    Column("aupro_1", "AUPRO@1"),
]


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and evaluate every contestant on every category of every seed's data set."""
    del limits
    names = chosen(CONTESTANTS, arguments.methods)
    categories = CATEGORIES[: 1 if arguments.quick else arguments.categories]
    seeds = range(1 if arguments.quick else arguments.seeds)
    with working_folder(arguments.workdir, "accuracy") as root, ProcessPoolExecutor(arguments.workers) as pool:
        tasks = [(root, arguments.quick, seed, category, names) for seed in seeds for category in categories]
        for seed in seeds:
            _synthesise(root, seed, arguments.quick)
        if any(CONTESTANTS[name][0] == MDSS.name for name in names):
            list(pool.map(_distil, [(root, arguments.quick, seed, categories) for seed in seeds]))
        rows = [row for rows in pool.map(_measure, tasks) for row in rows]
    title = f"{len(categories)} synthetic categories × {len(seeds)} seeds, embedded extractors"
    return [_means(title, rows), _kinds(title, rows), _by_category(title, rows)]


def _synthesise(root: Path, seed: int, quick: bool) -> None:
    raw = root / f"seed-{seed}"
    if not raw.exists():
        write_synthetic(raw, seed=seed, categories=CATEGORIES[:1] if quick else None, **(QUICK if quick else FULL))


def _prepared(root: Path, seed: int, category: str, recipe: str) -> Path:
    """Prepare a category with a method's preprocessing, once."""
    target = root / f"seed-{seed}-{recipe}-{category}"
    prepare(root / f"seed-{seed}", target, Preprocessing.recipe(recipe), categories=[category], workers=1)
    return target


def _distil(task: tuple[Path, bool, int, tuple[str, ...]]) -> None:
    """Distil MDSS's teacher on the training images of all categories of a data set: one serves them all."""
    root, quick, seed, categories = task
    path = _teacher_of(root, seed)
    if path.exists():
        return
    torch.set_num_threads(1)
    model = MDSS(**{**embedded_arguments(MDSS), **(_few_steps(MDSS) if quick else {}), "seed": seed})
    data = [open_dataset(_prepared(root, seed, one, model.recipe_of_data), one, "train") for one in categories]
    images = torch.stack([model.prepare(sample).rgb for split in data for sample in split])
    with replacing(path) as partial:
        save_file(model.distil(images).state_dict(), partial)
    print(f"  seed {seed}: teacher distilled", file=sys.stderr, flush=True)


def _teacher_of(root: Path, seed: int) -> Path:
    return root / f"seed-{seed}-teacher.safetensors"


def _measure(task: tuple[Path, bool, int, str, list[str]]) -> list[dict[str, Any]]:
    """Fit and evaluate all contestants on one category; what an earlier run left in the folder is not done again."""
    root, quick, seed, category, names = task
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    fitted: dict[str, Method] = {}
    for name in names:
        arguments = _arguments_of(name, root, seed, quick)
        folder = root / "results" / f"seed-{seed}-{category}-{name.replace(', ', '-').replace(' ', '-')}"
        stages = Stages(folder, json.loads(json.dumps(arguments)))

        def make(path: Path, name: str = name, arguments: dict[str, Any] = arguments) -> None:
            measured = _measure_one(name, arguments, root, category, fitted)
            path.write_text(json.dumps(measured) + "\n")
            seconds = measured[0]["fit_seconds"]
            own = next(row["image_auroc"] for row in measured if row["result"] == FUSED)
            line = f"  seed {seed}, {category}, {name}: I-AUROC {own:.3f}, fit {seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)

        rows += json.loads(stages.run("rows.json", make).read_text())
    return rows


def _arguments_of(name: str, root: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Return the arguments of a contestant's constructor."""
    method, changes = CONTESTANTS[name]
    cls = method_class(method)
    teacher = {"teacher": str(_teacher_of(root, seed))} if cls is MDSS else {}
    return {**embedded_arguments(cls), **(_few_steps(cls) if quick else {}), **teacher, **changes, "seed": seed}


def _measure_one(
    name: str, arguments: dict[str, Any], root: Path, category: str, fitted: dict[str, Method]
) -> list[dict[str, Any]]:
    """Fit a contestant, or take a fitted one that differs in prediction only, and evaluate it: a row a result."""
    method, changes = CONTESTANTS[name]
    cls, seed = method_class(method), arguments["seed"]
    data = _prepared(root, seed, category, cls.recipe_of_data)
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
            "method": name, "result": part, "category": category, "seed": seed, "images": len(evaluation.scores),
            "image_auroc": metrics.image_auroc, "pixel_auroc": metrics.pixel_auroc, "aupro": metrics.aupro[0.3],
            "aupro_1": metrics.aupro[0.01], "kinds": kinds, "seconds_per_image": evaluation.seconds,
            "fit_seconds": seconds,
        })  # fmt: skip
    return rows


def _alike(fitted: Mapping[str, Method], method: str, changes: Mapping[str, Any]) -> Method | None:
    """Return a method that was fitted with the same arguments but those that only prediction reads, with these."""
    wanted = {key: value for key, value in changes.items() if key not in PREDICTION_ONLY}
    for name, model in fitted.items():
        kind, own = CONTESTANTS[name]
        if kind == method and {key: value for key, value in own.items() if key not in PREDICTION_ONLY} == wanted:
            other = copy.copy(model)
            for key in PREDICTION_ONLY & changes.keys():
                setattr(other, key, changes[key])
            return other
    return None


def _few_steps(cls: type[Method]) -> dict[str, Any]:
    """Return arguments that make every training as short as can be."""
    return {name: 2 for name in cls.argument_names() if name.endswith("_steps") or name == "epochs"}


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


def _means(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(f"Accuracy: {title}", _MEAN_COLUMNS, headline=True)
    for (method, part), own in _grouped(rows, "method", "result").items():
        values = {column.key: _spread(own, column.key) for column in _MEAN_COLUMNS[2:]}
        table.rows.append({"method": method, "result": part, **values})
    table.notes = [
        "Means over categories and seeds ± standard deviation of the seeds' means. 'fused' is the method's own result;"
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


def _by_category(title: str, rows: list[dict[str, Any]]) -> Table:
    columns = [Column("method", "method"), Column("result", "result"), Column("category", "category"),
               Column("image_auroc", "I-AUROC"), Column("aupro", "AUPRO@30"), Column("seeds", "by seed")]  # fmt: skip
    table = Table(f"By category: {title}", columns)
    for (method, part, category), own in _grouped(rows, "method", "result", "category").items():
        each = " ".join(f"{row['image_auroc']:.3f}" for row in own)
        values = {"image_auroc": _spread(own, "image_auroc"), "aupro": _spread(own, "aupro"), "seeds": each}
        table.rows.append({"method": method, "result": part, "category": category, **values})
    return table
