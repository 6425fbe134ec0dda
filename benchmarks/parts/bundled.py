"""PatchCore with bundled networks on pictures: which network, stages, size of image, padding and rule of the score.

Without ``--data`` the pictures are those of painted.py beside this file, which settings are chosen on; with it, any
folder in the layout of MVTec AD. Borders of padding take part neither in I-AUROC nor in AUPRO.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Column, Table, working_folder

from mmad_bank import scoring
from mmad_bank._internal import sections
from mmad_bank.data import Preprocessing, Sample, open_dataset, preprocess
from mmad_bank.data.names import GOOD
from mmad_bank.errors import InputError
from mmad_bank.evaluation import FUSED, evaluate
from mmad_bank.methods import PatchCore, Prediction
from mmad_bank.metrics import auroc
from parts import painted

AXES = {
    "networks": ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
    "stages": ("1,2,4",), "sizes": ("224",), "grids": ("auto",), "pads": ("zero",),
    "rules": ("patchcore",), "turns": ("none",),
}  # fmt: skip
"""Axes of the grid, with the values that a run takes when none are named."""
TURNS = ("none", "flips", "quarters")
RULES: dict[str, Callable[[Prediction], float]] = {
    "patchcore": lambda prediction: prediction.score,
    "max": lambda prediction: float(_shown(prediction).max()),
    "top": lambda prediction: float(scoring.top_mean(_shown(prediction))[0]),
}
"""Scores of an image by rule; PatchCore's own is its prediction's, the others are made of its patches' scores."""
STRIDE = 8
"""Pixels of a prepared picture per patch along a side, if the grid is ``auto``."""
_QUICK = painted.Counts(3, 2, 1)


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    network: str
    stages: tuple[int, ...]
    size: int
    grid: int
    pad: str
    turn: str

    def method(self, seed: int) -> PatchCore:
        """Return the method that it stands for, not fitted."""
        grid = (self.grid, self.grid)
        return PatchCore(self.network, rgb_layers=self.stages, image_size=self.size, grid=grid, seed=seed)


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that this part cannot take.

    Raises:
        InputError: There is one.
    """
    for setting in settings_of(arguments):
        setting.method(0)
        Preprocessing.recipe("keep", pad=setting.pad, size=setting.size)
        if setting.turn not in TURNS:
            raise InputError(f"--turns: expected some of {', '.join(TURNS)}, found {setting.turn}")
    unknown = [rule for rule in rules_of(arguments) if rule not in RULES]
    if unknown:
        raise InputError(f"--rules: expected some of {', '.join(RULES)}, found {', '.join(unknown)}")
    if arguments.data is not None:
        open_dataset(arguments.data, None, "train")


def _values(arguments: argparse.Namespace, axis: str) -> tuple[str, ...]:
    return tuple(getattr(arguments, axis) or AXES[axis])


def rules_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the rules of the image score; they share fits."""
    return _values(arguments, "rules")


def settings_of(arguments: argparse.Namespace) -> list[Setting]:
    """Return the points of the grid, those of one size and padding together."""
    axes = [_values(arguments, axis) for axis in ("sizes", "pads", "grids", "turns", "networks", "stages")]
    try:
        return [
            Setting(
                network, tuple(map(int, stages.split(","))), int(size),
                int(size) // STRIDE if grid == "auto" else int(grid), pad, turn,
            )
            for size, pad, grid, turn, network, stages in itertools.product(*axes)
        ]  # fmt: skip
    except ValueError as error:
        raise InputError(f"--sizes, --grids, --stages: expected integers, found otherwise ({error})") from error


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and evaluate PatchCore for every setting, on every category of every seed."""
    del limits
    rows: list[dict[str, Any]] = []
    with working_folder(arguments.workdir, "bundled") as folder:
        seeds = range(1 if arguments.quick or arguments.data is not None else arguments.seeds)
        for seed in seeds:
            data = arguments.data or painted_pictures(folder, seed, quick=arguments.quick)
            for category in categories_in(data, arguments.only):
                rows += _measure(data, category, seed, arguments)
    if not rows:
        raise InputError(f"--only: expected categories of the data, found {arguments.only}")
    where = "painted pictures" if arguments.data is None else arguments.data.resolve().name
    where += "" if arguments.few_shot is None else f", {arguments.few_shot} training images"
    return [_means(where, rows), _by_category(where, rows)]


def painted_pictures(folder: Path, seed: int, *, quick: bool) -> Path:
    """Write the pictures that settings are chosen on, unless an earlier run has."""
    data = folder / f"painted-{seed}{'-quick' if quick else ''}"
    if not data.exists():
        partial = data.with_name(f"{data.name}.partial")
        categories, counts = (("gravel",), _QUICK) if quick else (painted.CATEGORIES, painted.Counts())
        painted.write(partial, categories, counts, seed)
        partial.rename(data)
    return data


def categories_in(data: Path, only: str | None) -> list[str]:
    found = sorted({record.category for record in open_dataset(data, None, "train").records})
    return found if only is None else [category for category in found if category in only.split(",")]


def _measure(data: Path, category: str, seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each setting and rule; pictures of one size and padding are prepared once."""
    rules = rules_of(arguments)
    for (size, pad), group in itertools.groupby(settings_of(arguments), key=lambda one: (one.size, one.pad)):
        recipe = Preprocessing.recipe("keep", pad=pad, size=size)
        raw = (open_dataset(data, category, split) for split in ("train", "test"))
        train, test = ([preprocess(sample, recipe) for sample in samples] for samples in raw)
        if arguments.few_shot is not None:
            train = train[: arguments.few_shot]
        for setting in group:
            shown = _turned(train, setting.turn)
            begin = time.perf_counter()
            model = setting.method(seed).fit(shown)
            common = {**_facts(setting), "category": category, "seed": seed, "train": len(shown),
                      "fit_seconds": time.perf_counter() - begin}  # fmt: skip
            for rule, figures in _evaluated(model, test, rules).items():
                yield {**common, "rule": rule, **figures}
                line = f"  seed {seed}, {category}, {_words(setting)}, {rule}: I-AUROC {figures['image_auroc']:.3f}"
                print(line, file=sys.stderr, flush=True)


def _evaluated(model: PatchCore, test: Sequence[Sample], rules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return figures by rule; every picture is scored once."""
    scores: dict[str, list[float]] = {rule: [] for rule in rules}

    def watch(prediction: Prediction) -> None:
        for rule, own in scores.items():
            own.append(RULES[rule](prediction))

    found = evaluate(model, test, limits=(0.3,), watch=watch)
    kinds = np.array([one.defect for one in found.scores])

    def auroc_of(rule: str, kind: str | None = None) -> float:
        counted = (kinds == GOOD) | (kinds == kind if kind else True)
        return float(auroc(kinds[counted] != GOOD, np.array(scores[rule])[counted]))

    alike = {
        "aupro": found.metrics[FUSED].aupro[0.3], "extraction": found.sections[sections.features_of("rgb")],
    }  # fmt: skip
    return {
        rule: {"image_auroc": auroc_of(rule), "kinds": {kind: auroc_of(rule, kind) for kind in found.kinds}, **alike}
        for rule in rules
    }


def _shown(prediction: Prediction) -> torch.Tensor:
    """Return the scores (1, P) of the patches that lie in the picture."""
    (part,) = prediction.parts.values()
    return part.scores[part.shown].reshape(1, -1)


def _facts(setting: Setting) -> dict[str, Any]:
    return {**vars(setting), "stages": ",".join(map(str, setting.stages))}


def _words(setting: Setting) -> str:
    return " ".join(map(str, _facts(setting).values()))


def _turned(samples: Sequence[Sample], turn: str) -> list[Sample]:
    """Return training samples with their mirror images, or also turned by quarters, beside them."""
    ways = {"none": ((0, False),), "flips": ((0, False), (0, True), (2, False), (2, True)),
            "quarters": tuple(itertools.product(range(4), (False, True)))}[turn]  # fmt: skip
    return [
        replace(
            sample, rgb=_turn(sample.rgb, *way), xyz=_turn(sample.xyz, *way), frame=None,
            mask=None if sample.mask is None else _turn(sample.mask, *way), id=f"{sample.id}-{number}",
        )
        if number else sample
        for sample in samples for number, way in enumerate(ways)
    ]  # fmt: skip


def _turn(values: torch.Tensor, quarters: int, mirrored: bool) -> torch.Tensor:
    turned = torch.rot90(values, quarters, (-2, -1))
    return (turned.flip(-1) if mirrored else turned).contiguous()


_KEYS = ("network", "stages", "size", "grid", "pad", "turn", "rule")


def _means(where: str, rows: list[dict[str, Any]]) -> Table:
    columns = [*(Column(key, key) for key in _KEYS), Column("image_auroc", "I-AUROC", ".3f"),
               Column("aupro", "AUPRO@30", ".3f"), Column("extraction_ms", "extraction (ms)", ".1f"),
               Column("fit_seconds", "fit (s)", ".1f")]  # fmt: skip
    n_data = len({(row["category"], row["seed"]) for row in rows})
    table = Table(f"Bundled networks: {where}", columns, headline=True)
    for key, own in _grouped(rows).items():
        values = {name: _mean(own, name) for name in ("image_auroc", "aupro", "extraction", "fit_seconds")}
        extraction = values.pop("extraction")
        table.rows.append({**dict(zip(_KEYS, key, strict=True)), **values, "extraction_ms": 1e3 * (extraction or 0)})
    table.notes = [
        f"PatchCore with a bank of 10 %; means over {n_data} data sets (categories × seeds). Extraction is of one"
        " picture, alone.",
    ]
    return table


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in _KEYS), []).append(row)
    return groups


def _mean(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.mean(values) if values else None


def _by_category(where: str, rows: list[dict[str, Any]]) -> Table:
    categories = list(dict.fromkeys(row["category"] for row in rows))
    columns = [*(Column(key, key) for key in _KEYS), *(Column(one, one, ".3f") for one in categories)]
    table = Table(f"I-AUROC of bundled networks by category: {where}", columns)
    for key, own in _grouped(rows).items():
        values = {one: _mean([row for row in own if row["category"] == one], "image_auroc") for one in categories}
        table.rows.append({**dict(zip(_KEYS, key, strict=True)), **values, "measured": own})
    return table
