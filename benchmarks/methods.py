"""The methods' benchmark: speed and memory of inference at the papers' sizes, accuracy on synthetic data sets.

    python benchmarks/methods.py [inference] [accuracy] [readings] [decisions] [--quick] [--seeds 3] [--json DIR]
    python benchmarks/methods.py promise [--data DIR] [--splits 200] [--json DIR]
    python benchmarks/methods.py papers --data DIR [--methods M3DM CFM] [--weights point_mae=FILE] [--workdir DIR]
    python benchmarks/methods.py papers --table cfm-1,m3dm-4 [--data DIR] [--recipe published] [--set NAME=VALUE ...]
    python benchmarks/methods.py papers --list
    python benchmarks/methods.py bundled [--data DIR] [--networks NAME ...] [--stages 1,2,4 ...] [--sizes 224 ...]
    python benchmarks/methods.py regions [--data DIR] [--only CATEGORY,...] [--seeds 3] [--json DIR]
    python benchmarks/methods.py real --data DIR [--only CATEGORY,...] [--json benchmarks/results]
    python benchmarks/methods.py accelerated --data DIR [--only CATEGORY,...] [--coresets 1] [--json benchmarks/results]
    python benchmarks/methods.py runtimes [--data DIR] [--threads 1] [--json benchmarks/results]

The second tests the false-alarm rates that verdicts promise, on synthetic images and on the normal ones of a data set.
The third runs every method on MVTec 3D-AD or Eyecandies, with the published figures beside the measured ones; the
fourth prints tables of the papers by name, on synthetic data where no data set is given; the fifth says which there
are. The next four run PatchCore on pictures in MVTec AD's layout: with a grid of bundled networks and settings; with
the bundled one, whose regions are compared with the defects' masks; with the bundled one beside anomalib's; and
anomalib's as it is beside anomalib's accelerated. The last times the extractors by the libraries that run
them; with --data it measures PatchCore's accuracy with each.
Prints the machine, the versions and the tables; ``--json`` also writes them to a file. README.md beside this file says
what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import importlib
import os
from functools import partial
from pathlib import Path
from typing import Any, get_args

from common import check_parts, parse, parser, print_table, refuse, run_parts

from mmad_bank.bench import IMAGES
from mmad_bank.errors import InputError
from mmad_bank.methods.readings import Recipe

PARTS = (
    "inference", "accuracy", "readings", "decisions", "promise", "papers", "bundled", "regions", "real", "accelerated",
    "runtimes",
)  # fmt: skip
ASKED = ("papers", "bundled", "regions", "real", "accelerated", "runtimes")
"""Parts that run when they are named, or when an argument of theirs is given."""
COMMON = ("methods", "seeds", "first_seed", "categories", "images", "precision", "splits")
"""Arguments that a result file always names."""
OF_BUNDLED = ("networks", "stages", "sizes", "grids", "pads", "rules", "turns")
"""Arguments that only the part "bundled" reads."""
REAL = ("data", "only")
"""Arguments that the parts "real", "regions", "accelerated" and "runtimes" read."""
PAPERS = ("data", "only", "few_shot", "bundled", "weights", "device", "table", "recipe", "settings", "thresholds")
"""Arguments that the part "papers" reads; nobody but it and those above does."""
OF_TABLES = ("recipe", "settings", "thresholds")
"""Those of them that are for tables by name."""


def main() -> None:
    """Run the chosen parts, print their tables and write the result file."""
    arguments = _arguments()
    if arguments.list:
        try:
            return print_table(importlib.import_module("parts.tables").listing(arguments.table))
        except InputError as error:
            refuse(error)
    runs_papers = arguments.data is not None or arguments.table is not None
    only = ["papers"] if arguments.table is not None else None
    unasked = [name for name in PARTS if name not in ASKED or (name == "papers" and runs_papers)]
    parts = arguments.parts or only or unasked
    for name in ("real", "accelerated"):
        if name in parts and arguments.data is None:
            refuse(f"--data: expected the folder of a data set for the part {name}, found none")
    if "papers" in parts and not runs_papers:
        refuse("--data: expected the folder of a data set for the part papers, or --table, found none")
    if arguments.table is None and any(getattr(arguments, name) is not None for name in OF_TABLES):
        refuse("--table: expected tables of papers with --recipe, --set and --thresholds, found none")
    modules = {name: importlib.import_module(f"parts.{name}") for name in parts}
    check_parts(modules.values(), arguments)
    work = {name: partial(module.run, arguments) for name, module in modules.items()}
    settings = {name: getattr(arguments, name) for name in COMMON}
    if "bundled" in parts:
        settings |= {name: getattr(arguments, name) for name in OF_BUNDLED}
        settings |= {name: _without_folders(getattr(arguments, name)) for name in ("data", "only", "few_shot")}
    if "promise" in parts:
        settings["data"] = _without_folders(arguments.data)
    if {"real", "regions", "accelerated", "runtimes"} & set(parts):
        settings |= {name: _without_folders(getattr(arguments, name)) for name in REAL}
    if "papers" in parts:
        settings |= {name: _without_folders(getattr(arguments, name)) for name in PAPERS}
    run_parts("methods", work, settings, arguments)


def _without_folders(value: Any) -> Any:
    """Return a setting without the folders of this machine: data sets and weights by their own names."""
    if isinstance(value, Path):
        return value.resolve().name
    if isinstance(value, list):
        return [f"{key}={Path(path).name}" for key, _, path in (word.partition("=") for word in value)]
    return value


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, PARTS)
    # Tiny networks gain nothing from more threads, and wait for each other where a core has other work.
    made.set_defaults(threads=None)
    made.add_argument("--methods", nargs="+", metavar="METHOD", help="contestants by name or by method; default: all")
    made.add_argument("--images", type=int, default=IMAGES, help="number of training images of inference; default: 244")
    precisions = ("auto", "float32", "bfloat16")
    made.add_argument(
        "--precision", choices=precisions, default="auto", help="dtype of its networks; auto: the faster one"
    )
    made.add_argument("--seeds", type=int, default=3, help="number of synthetic data sets of accuracy; default: 3")
    made.add_argument("--first-seed", type=int, default=0, help="seed of the first of them; default: 0")
    made.add_argument("--categories", type=int, default=5, help="number of categories of accuracy; default: all 5")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="categories at a time; default: cores")
    made.add_argument("--workdir", type=Path, help="folder for data sets and fits, kept; default: a temporary one")
    made.add_argument("--splits", type=int, default=200, help="number of random splits of promise; default: 200")
    made.add_argument("--coresets", type=int, default=1, help="selections of each in accelerated; default: 1")
    papers = made.add_argument_group("arguments of papers; --data and --only of other parts")
    told = "MVTec 3D-AD, Eyecandies, or a folder like them; for the other parts MVTec AD or a folder like it"
    papers.add_argument("--data", type=Path, metavar="DIR", help=told)
    papers.add_argument("--only", metavar="CATEGORY,...", help="some categories, of those parts too; default: all")
    papers.add_argument("--few-shot", type=int, metavar="N", help="fit on so many drawn images, without validation")
    papers.add_argument("--bundled", action="store_true", help="take small extractors that need no weight files")
    papers.add_argument("--embedded", action="store_true", dest="bundled", help=argparse.SUPPRESS)  # its former name
    papers.add_argument(
        "--weights", nargs="+", metavar="NAME=FILE",
        help="files of rgb, wide_resnet, wide_resnet_timm, efficientnet_b5, point_mae, uff, pdn",
    )  # fmt: skip
    papers.add_argument("--table", metavar="NAME,...", help="tables of the papers; without --data: on synthetic data")
    papers.add_argument("--list", action="store_true", help="list the tables, or those of --table, and run nothing")
    papers.add_argument("--recipe", choices=get_args(Recipe), help="recipe of the tables' rows that have one")
    papers.add_argument(
        "--set", nargs="+", action="extend", dest="settings", metavar="NAME=VALUE",
        help="arguments of the tables' rows that have them; what makes rows differ stays theirs",
    )  # fmt: skip
    papers.add_argument(
        "--thresholds", choices=("100", "99", "exact"), help="thresholds of AUPRO; default: the table's own"
    )
    bundled = made.add_argument_group("arguments of bundled, beside --data, --only, --few-shot and --seeds")
    bundled.add_argument("--networks", nargs="+", metavar="NAME", help="networks; default: EfficientNet-Lite0, 1, 2")
    bundled.add_argument("--stages", nargs="+", metavar="N,N,N", help="stages of the networks; default: 1,2,4")
    bundled.add_argument("--sizes", nargs="+", metavar="PIXELS", help="sides of the prepared pictures; default: 224")
    bundled.add_argument("--grids", nargs="+", metavar="N", help="patches per side; default: auto, one per 8 pixels")
    bundled.add_argument("--pads", nargs="+", metavar="PAD", help="paddings to a square: zero, edge, reflect")
    bundled.add_argument("--rules", nargs="+", metavar="RULE", help="rules of the image score: patchcore, max, top")
    bundled.add_argument("--turns", nargs="+", metavar="TURN", help="views added to training: none, flips, quarters")
    papers.add_argument("--device", default="cpu", help="device of the networks and banks; default: cpu")
    return parse(made, "images", "seeds", "categories", "workers", "splits", "coresets")


if __name__ == "__main__":
    main()
