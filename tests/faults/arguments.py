"""What the programs here take on their command lines, and how tests call them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

Chosen = TypeVar("Chosen")


def parser_of(doc: str | None, trials: str, default: int, kinds: str) -> argparse.ArgumentParser:
    """Return a parser of ``--TRIALS``, ``--seed``, ``--KINDS`` and ``--keep``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{trials}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(f"--{kinds}", help="Names, comma-separated (default: all).")
    parser.add_argument("--keep", type=Path, help="Folder for what is faulty.")
    return parser


def choose(kinds: str, names: str | None, known: Mapping[str, Chosen]) -> list[Chosen]:
    """Return those of these names, comma-separated; all without names. Ends the program if there are no such ones."""
    wanted = list(known) if names is None else names.split(",")
    unknown = set(wanted) - set(known)
    if unknown:
        sys.exit(f"{kinds}: expected some of {', '.join(known)}, found {', '.join(sorted(unknown))}")
    return [known[name] for name in wanted]


def call(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this folder in a process of its own.

    The programs fork. What a process has done before goes with its children: one whose threads of autograd have
    run, as in other tests, cannot train in a child.
    """
    command = [sys.executable, str(Path(__file__).with_name(program)), *options]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def totals(out: str) -> dict[str, int]:
    """Return the last line of a printed table by the names in its first."""
    head, *_, last = (line.replace("in time", "in-time").split() for line in out.splitlines())
    return dict(zip(head[1:], map(int, last[1:]), strict=False))
