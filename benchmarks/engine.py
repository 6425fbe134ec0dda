"""The engine's benchmark: selection, search, a bagel-size build, loading, exactness, metrics.

    python benchmarks/engine.py [selection] [search] [bagel] [load] [exactness] [metrics] [--quick] [--json PATH]

Prints the machine, the versions and a table or more a part; ``--json`` also writes all of it to a file. README.md
beside this file says what is measured and how to read it.
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
    drift_table,
    machine_table,
    print_table,
    result,
    set_threads,
    versions_table,
    write_result,
)

PARTS = ("selection", "search", "bagel", "load", "exactness", "metrics")


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
    _import_peers()
    set_threads(options.threads)
    limits = ceilings(quick=options.quick)
    settings = {"quick": options.quick, "rounds": options.rounds, "full": options.full, "parts": list(modules)}
    values = result("engine", settings, options.threads, limits)
    print_table(machine_table(values["machine"], limits))
    print_table(versions_table(values["versions"]))
    for name, module in modules.items():
        tables = module.run(options, limits)
        for table in tables:
            print_table(table)
        add_part(values, name, tables)
        if arguments.json is not None:  # after every part: a later one that fails costs nothing that was measured
            write_result(values, arguments.json)
    values["ceilings_after"] = ceilings(quick=options.quick)
    values["load_average_after"] = os.getloadavg()[0]
    print_table(drift_table(values))
    if arguments.json is not None:
        print(f"written: {write_result(values, arguments.json)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(PARTS)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"{known}; default: all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The times mean nothing")
    parser.add_argument("--full", action="store_true", help="run anomalib's selection whole as well (minutes)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of the interleaved contestants; default: 5")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for all alike; default: all cores")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file, or a folder to name one in")
    parser.add_argument("--workdir", type=Path, help="folder for the dump of 3.5 GB; default: the temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep the dump in --workdir for the next run")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads: expected at least 1")
    return arguments


def _import_peers() -> None:
    """Load the peers' libraries before the thread pools are set: a pool that comes later would not be."""
    for name in ("faiss", "sklearn.neighbors", "hnswlib", "usearch"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue


if __name__ == "__main__":
    main()
