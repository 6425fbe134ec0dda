"""The methods' benchmark: speed and memory of inference at the papers' sizes, accuracy on synthetic data sets.

    python benchmarks/methods.py [inference] [accuracy] [readings] [--quick] [--seeds 3] [--json benchmarks/results]
    python benchmarks/methods.py papers --data DIR [--methods M3DM CFM] [--weights point_mae=FILE] [--workdir DIR]

The second prints the papers' tables on MVTec 3D-AD or Eyecandies, with the published figures beside the measured ones.
Prints the machine, the versions and the tables; ``--json`` also writes them to a file. README.md beside this file says
what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from common import parse, parser, run_parts

from mmad_bank.bench import IMAGES

PARTS = ("inference", "accuracy", "readings", "papers")
PAPERS = ("data", "only", "few_shot", "bundled", "weights", "device")
"""Arguments that only the part "papers" reads."""


def main() -> None:
    """Run the chosen parts, print their tables and write the result file."""
    arguments = _arguments()
    parts = arguments.parts or [name for name in PARTS if name != "papers" or arguments.data is not None]
    if "papers" in parts and arguments.data is None:
        sys.exit("error: --data: expected the folder of a data set for the part papers, found none")
    modules = {name: importlib.import_module(f"parts.{name}") for name in parts}
    work = {name: partial(module.run, arguments) for name, module in modules.items()}
    settings = {name: getattr(arguments, name) for name in ("methods", "seeds", "categories", "images", "precision")}
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
    made.add_argument("--methods", nargs="+", metavar="METHOD", help="contestants by name or by method; default: all")
    made.add_argument("--images", type=int, default=IMAGES, help="number of training images of inference; default: 244")
    precisions = ("auto", "float32", "bfloat16")
    made.add_argument(
        "--precision", choices=precisions, default="auto", help="dtype of its networks; auto: the faster one"
    )
    made.add_argument("--seeds", type=int, default=3, help="number of synthetic data sets of accuracy; default: 3")
    made.add_argument("--categories", type=int, default=5, help="number of categories of accuracy; default: all 5")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="categories at a time; default: cores")
    made.add_argument("--workdir", type=Path, help="folder for data sets and fits, kept; default: a temporary one")
    papers = made.add_argument_group("arguments of papers")
    papers.add_argument("--data", type=Path, metavar="DIR", help="MVTec 3D-AD, Eyecandies, or a folder like them")
    papers.add_argument("--only", metavar="CATEGORY,...", help="some categories; default: all")
    papers.add_argument("--few-shot", type=int, metavar="N", help="fit on so many drawn images, without validation")
    papers.add_argument("--bundled", action="store_true", help="take small extractors that need no weight files")
    papers.add_argument("--embedded", action="store_true", dest="bundled", help=argparse.SUPPRESS)  # its former name
    papers.add_argument(
        "--weights", nargs="+", metavar="NAME=FILE",
        help="files of rgb, wide_resnet, wide_resnet_timm, point_mae, uff, pdn",
    )  # fmt: skip
    papers.add_argument("--device", default="cpu", help="device of the networks and banks; default: cpu")
    return parse(made, "images", "seeds", "categories", "workers")


if __name__ == "__main__":
    main()
