"""The methods' benchmark: accuracy on the synthetic data set, speed and memory at the papers' sizes.

    python benchmarks/methods.py [accuracy] [--quick] [--seeds 3] [--json benchmarks/results]

Prints the machine, the versions and the tables; ``--json`` also writes them to a file. README.md beside this file says
what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

from common import (
    Options,
    add_part,
    ceilings,
    machine_table,
    print_table,
    result,
    set_threads,
    versions_table,
    write_result,
)

PARTS = ("accuracy",)


def main() -> None:
    """Run the chosen parts, print their tables and write the result file."""
    arguments = _arguments()
    options = Options(arguments.threads, arguments.rounds, quick=arguments.quick, workdir=arguments.workdir)
    set_threads(options.threads)
    limits = ceilings(quick=options.quick)
    settings = {name: getattr(arguments, name) for name in ("quick", "rounds", "seeds", "methods")}
    values = result("methods", settings, options.threads, limits)
    print_table(machine_table(values["machine"], limits))
    print_table(versions_table(values["versions"]))
    for name in arguments.parts or PARTS:
        tables = importlib.import_module(f"parts.{name}").run(options, arguments)
        for table in tables:
            print_table(table)
        add_part(values, name, tables)
        if arguments.json is not None:
            write_result(values, arguments.json)
    if arguments.json is not None:
        print(f"written: {write_result(values, arguments.json)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(PARTS)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"{known}; default: all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The figures mean nothing")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="of accuracy; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="synthetic data sets; default: 3")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="categories at a time; default: cores")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; default: 5")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for timings; default: all cores")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file, or a folder to name one in")
    parser.add_argument("--workdir", type=Path, help="folder for data sets, kept; default: a temporary one")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.threads, arguments.seeds, arguments.workers) < 1:
        parser.error("--rounds, --threads, --seeds and --workers: expected at least 1")
    return arguments


if __name__ == "__main__":
    main()
