"""The benchmark of selection over workers: what it costs beside one process, how it grows, whether a plan holds.

    python benchmarks/distributed.py [overhead] [growth] [--quick]

Prints the machine, the versions and one or more tables per part; ``--json PATH`` also writes all of it to a file.
README.md beside this file says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from pathlib import Path

from common import Options, parse, parser, run_parts

PARTS = ("overhead", "growth")


def main() -> None:
    """Run the chosen parts, print their tables and write the result file."""
    arguments = _arguments()
    options = Options(
        threads=arguments.threads,
        rounds=arguments.rounds,
        quick=arguments.quick,
        full=arguments.full,
        workdir=arguments.workdir,
        keep=arguments.keep,
    )
    modules = {name: importlib.import_module(f"parts.{name}") for name in PARTS if name in (arguments.parts or PARTS)}
    work = {name: partial(module.run, options) for name, module in modules.items()}
    run_parts("distributed", work, {"full": options.full}, arguments)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, PARTS)
    made.add_argument("--full", action="store_true", help="grow to 100 million rows as well: 64 GB of disk")
    made.add_argument("--workdir", type=Path, help="folder for the dumps; default: the temporary folder")
    made.add_argument("--keep", action="store_true", help="keep the dumps in --workdir for the next run")
    return parse(made)


if __name__ == "__main__":
    main()
