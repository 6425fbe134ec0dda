"""The methods' benchmark: speed and memory of inference at the papers' sizes, accuracy on synthetic data sets.

    python benchmarks/methods.py [inference] [accuracy] [--quick] [--seeds 3] [--json benchmarks/results]

Prints the machine, the versions and the tables; ``--json`` also writes them to a file. README.md beside this file says
what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import importlib
import os
from functools import partial
from pathlib import Path

from common import parse, parser, run_parts

from mmad_bank.bench import IMAGES

PARTS = ("inference", "accuracy")


def main() -> None:
    """Run the chosen parts, print their tables and write the result file."""
    arguments = _arguments()
    modules = {name: importlib.import_module(f"parts.{name}") for name in arguments.parts or PARTS}
    work = {name: partial(module.run, arguments) for name, module in modules.items()}
    settings = {name: getattr(arguments, name) for name in ("methods", "seeds", "categories", "images", "precision")}
    run_parts("methods", work, settings, arguments)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, PARTS)
    made.add_argument("--methods", nargs="+", metavar="METHOD", help="contestants by name or by method; default: all")
    made.add_argument("--images", type=int, default=IMAGES, help="of inference: training images; default: 244")
    made.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of its networks")
    made.add_argument("--seeds", type=int, default=3, help="of accuracy: synthetic data sets; default: 3")
    made.add_argument("--categories", type=int, default=5, help="of accuracy: so many of the five; default: 5")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="categories at a time; default: cores")
    made.add_argument("--workdir", type=Path, help="folder for data sets and fits, kept; default: a temporary one")
    return parse(made, "images", "seeds", "categories", "workers")


if __name__ == "__main__":
    main()
