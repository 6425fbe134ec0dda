"""Every benchmark that needs no GPU and no data set from elsewhere, one after the other, and how long each took.

    python benchmarks/suite.py [--quick] [--json benchmarks/results]

Runs ``engine.py`` and ``methods.py`` with all their parts, each program in a process of its own, within an hour on two
cores: in three rounds, ``methods.py inference`` with banks of 60 images (by itself: 244), ``accuracy``, ``decisions``
on one category of one data set (by themselves: five of three), ``promise`` in 20 splits (by itself: 200). ``--json``
keeps their result files in a folder. README.md beside this file says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import add_common, parse, print_table, time_table, write_result

BENCHMARKS = Path(__file__).resolve().parent
PROGRAMS: dict[str, list[str]] = {
    "engine": [],
    "methods": ["--images", "60", "--seeds", "1", "--categories", "1", "--splits", "20"],
}
"""Arguments that keep a program's time within the suite's, by the program's name."""


def main() -> None:
    """Run the programs, keep their results, and print how long their parts took."""
    arguments = _arguments()
    common = ["--rounds", str(arguments.rounds), "--threads", str(arguments.threads)]
    common += ["--quick"] if arguments.quick else []
    common += [] if arguments.workdir is None else ["--workdir", str(arguments.workdir.resolve())]
    runs = [(name, _run(name, [*own, *common], arguments.json)) for name, own in PROGRAMS.items()]
    print_table(time_table(runs))


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(made, rounds=3)
    made.add_argument("--json", type=Path, metavar="DIR", help="folder for the result files")
    made.add_argument("--workdir", type=Path, metavar="DIR", help="folder for data sets and fits, kept")
    arguments = parse(made)
    if arguments.workdir is not None:
        arguments.workdir.mkdir(parents=True, exist_ok=True)
    if arguments.json is not None and not arguments.json.is_dir():
        made.error(f"--json: expected a folder, found {arguments.json}")
    return arguments


def _run(name: str, arguments: list[str], kept: Path | None) -> Mapping[str, Any]:
    """Run a program; what it had measured when it failed is kept too."""
    with tempfile.TemporaryDirectory(prefix="mmad-bank-suite-") as folder:
        path = Path(folder) / f"{name}.json"
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments, "--json", str(path)]
        code = subprocess.run(command, check=False).returncode
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if values and kept is not None:
        print(f"kept: {write_result(values, kept)}")
    if code != 0:
        sys.exit(f"error: {name}.py ended with {code}")
    return values


if __name__ == "__main__":
    main()
