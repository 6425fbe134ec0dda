"""Everything that needs a GPU, in one command: kernels against float64, timings, tests, sanitizer, table of targets.

    python benchmarks/gpu.py [PART ...] [--quick] [--seconds BUDGET] [--json FOLDER]

Parts, in this order: smoke, ceilings, knn, k_center, points, methods, score, host_memory, growth, tests, sanitizer.
Each is a process with a time limit, so that a hang or a broken CUDA context costs one part. Every row is printed and
written when it is measured: a part that is killed leaves what it had. Every target is a ratio or a bound of this run.
What could not run, because a tool, a peer or time was missing, is listed as such. The summary comes last.

A folder given by --json gets gpu.json and log.txt; a path that ends in .json, the result alone. --seconds bounds the
whole run: parts for which no time is left are listed as not run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import ROOT, Table, result, write_result
from gpu_parts.jobs import LEAST_S, Job, Outcome, Process
from gpu_parts.measuring import QUICK, TARGET_COLUMNS, Report, Sizes, last_words, row_words, target_words

from mmad_bank.ops import _cuda

PARTS: dict[str, tuple[str, float]] = {
    "smoke": ("verification", 60), "ceilings": ("search", 30), "knn": ("search", 70), "k_center": ("selection", 60),
    "points": ("points", 30), "methods": ("methods", 80), "score": ("search", 25), "host_memory": ("selection", 35),
    "growth": ("search", 25), "tests": ("verification", 150), "sanitizer": ("verification", 250),
}  # fmt: skip
"""By name: the module of ``gpu_parts`` that has it, and the seconds it may take on an H100 of a run with a budget."""
PATIENCE = 5  # times that without a budget
RESERVE_S = 4.0  # of the budget, for the summary
SUMMARY_CHARACTERS = 10_500
_POLL_S = 0.1
_DETAILS = ("Milliseconds by stage", "Time by kernel")
"""Tables that the summary shows last of all, where there is room."""


def main() -> int:
    """Run the chosen parts one after the other; print and write what they measure."""
    arguments = _arguments()
    if arguments.child is not None:
        return child(arguments)
    if not _cuda.available(arguments.device):
        print("gpu.py: found no CUDA device that this build's kernels run on (mmad-bank info --system says more)")
        return 1
    settings = {name: getattr(arguments, name) for name in ("quick", "rounds", "seconds", "device")}
    chosen = [name for name in PARTS if name in (arguments.parts or PARTS)]
    values = result("gpu", {**settings, "parts": chosen}, torch.get_num_threads(), {})
    run = Run(values, chosen, arguments.seconds, arguments.json)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="mmad-bank-gpu-") as folder:
        run.all_parts(Path(folder), _child_command(arguments))
    return run.finish()


def _child_command(arguments: argparse.Namespace) -> list[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--rounds", str(arguments.rounds)]
    return [*command, "--device", arguments.device, *(["--quick"] if arguments.quick else [])]


# ---------------------------------------------------------------------------------------------------------------------
# A part, in its own process


def child(arguments: argparse.Namespace) -> int:
    """Wait for a line on standard input, which says how much time there is; then run one part."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # lets what the part has started end with it
    importlib.import_module(f"gpu_parts.{PARTS[arguments.child][0]}")  # while an earlier part still runs
    line = sys.stdin.readline()
    if not line:  # nobody waits for this part any more
        return 1
    told = json.loads(line)
    if {"wgmma", "k_center_wgmma"} & set(told["without"]):  # the default where a device has it: it would hang again
        os.environ["MMAD_BANK_WGMMA"] = "0"
        print("MMAD_BANK_WGMMA=0: a check of wgmma hung", flush=True)
    report = Report(
        QUICK if arguments.quick else Sizes(), arguments.rounds, device=arguments.device, path=arguments.file,
        seconds=told["seconds"], without=told["without"],
    )  # fmt: skip
    return run_part(report, arguments.child)


def run_part(report: Report, name: str) -> int:
    """Run a part; its error is printed, its last line short."""
    module = importlib.import_module(f"gpu_parts.{PARTS[name][0]}")
    try:
        getattr(module, f"run_{name}")(report)
    except Exception as error:
        traceback.print_exc()
        print(last_words(error), flush=True)
        return 1
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# All parts


class Run:
    """A run: starts the parts, gathers what they write, and keeps the result file up to date.

    Args:
        values: The result without parts.
        chosen: Names of the parts, in order.
        seconds: Budget of the whole run, or None.
        path: File or folder of the result, or None.
    """

    def __init__(self, values: dict[str, Any], chosen: Sequence[str], seconds: float | None, path: Path | None) -> None:
        self.values, self.chosen, self.budget = values, chosen, seconds
        self.outcomes: dict[str, Outcome] = {}
        self._targets: dict[str, list[dict[str, Any]]] = {}
        self._began = time.monotonic()
        self._file, log = _result_files(path)
        self._log = None if log is None else log.open("w", encoding="utf-8")
        values["seconds"] = {}

    def all_parts(self, folder: Path, command: Sequence[str]) -> None:
        """Run the parts; each next process starts early, so that its imports cost no time, and waits."""
        waiting: dict[str, Process] = {}

        def start(name: str) -> Process:
            own = [*command, "--child", name, "--file", str(folder / f"{name}.json")]
            paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            return Process(Job(name, own, 0.0, {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}), waits=True)

        try:
            for number, name in enumerate(self.chosen):
                limit = self._limit(name)
                if limit < LEAST_S:
                    self._end_part(Outcome(name, "not run"), folder)
                    continue
                process = waiting.pop(name, None) or start(name)
                waiting[name] = process
                self.say(f"\n===== {name}, at {self.seconds():.0f} s, {limit:.0f} s at most =====")
                process.go(limit, {"seconds": limit, "without": self._hung()})
                waiting |= {following: start(following) for following in self.chosen[number + 1 : number + 2]}
                outcome = self._watch(process, folder)
                del waiting[name]
                self._end_part(outcome, folder)
        finally:
            for process in waiting.values():
                process.end()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """Print something, and keep it in the log."""
        print(text, flush=True)
        if self._log is not None:
            self._log.write(f"{text}\n")
            self._log.flush()

    def _limit(self, name: str) -> float:
        own = PARTS[name][1]
        return PATIENCE * own if self.budget is None else min(own, self.budget - self.seconds() - RESERVE_S)

    def _hung(self) -> list[str]:
        """Name the checks that hung: the parts leave out what they checked."""
        tables = self.values["parts"].get("smoke", [])
        return [row["name"] for table in tables for row in table["rows"] if row["verdict"].startswith("TIMEOUT")]

    def _watch(self, process: Process, folder: Path) -> Outcome:
        """Pass on what a part prints and writes until it ends."""
        seen = 0.0
        while True:
            time.sleep(_POLL_S)
            outcome = process.outcome()
            text = process.new_text().rstrip("\n")
            if text:
                self.say(text)
            file = folder / f"{process.job.name}.json"
            changed = file.stat().st_mtime if file.exists() else 0.0
            if changed > seen or outcome is not None:
                seen = changed
                self._gather(process.job.name, folder)
            if outcome is not None:
                return outcome

    def _gather(self, name: str, folder: Path) -> None:
        """Take over what a part has written so far, and write the result."""
        file = folder / f"{name}.json"
        if file.exists():
            content = json.loads(file.read_text(encoding="utf-8"))
            self.values["parts"][name] = [table for table in content["tables"] if table["rows"]]
            self._targets[name] = content["targets"]
        self._write()

    def _end_part(self, outcome: Outcome, folder: Path) -> None:
        self.outcomes[outcome.name] = outcome
        self._gather(outcome.name, folder)
        self.values["seconds"][outcome.name] = outcome.seconds
        if not outcome.ok:
            late = outcome.verdict == "not run"
            measured = "no time was left" if late else f"{outcome.verdict}: {outcome.last_line}"
            row = {"what": f"part {outcome.name}", "wanted": "runs", "estimate": None, "measured": measured}
            row["met"] = "not measured" if late else "NO"
            self._targets[outcome.name] = [*self._targets.get(outcome.name, []), row]
            self.say(f"part {outcome.name}: {measured}")
        self._write()

    def targets(self) -> list[dict[str, Any]]:
        """Return the table of targets so far, in the order of the parts."""
        return [row for name in self.chosen for row in self._targets.get(name, [])]

    def _write(self) -> None:
        parts = {name: self.values["parts"][name] for name in self.chosen if name in self.values["parts"]}
        device = next(iter(self.values["machine"]["gpu"]), "no device")
        table = Table(f"Targets on {device}", TARGET_COLUMNS, self.targets(), headline=True)
        self.values["parts"] = {**parts, "targets": [table.to_json()]}
        if self._file is not None:
            write_result(self.values, self._file)

    def finish(self) -> int:
        """Print the summary; return the exit status."""
        self.say("\n".join(summary(self.values, self.outcomes, self.targets(), self.seconds())))
        if self._file is not None:
            print(f"written: {self._file}")
        if self._log is not None:
            self._log.close()
        return 2 if any(row["met"] == "NO" for row in self.targets()) else 0


def _result_files(path: Path | None) -> tuple[Path | None, Path | None]:
    """Return where the result and the log go: a folder is made if it is not there."""
    if path is None or path.suffix == ".json":
        return path, None
    path.mkdir(parents=True, exist_ok=True)
    return path / "gpu.json", path / "log.txt"


# ---------------------------------------------------------------------------------------------------------------------
# Summary


def summary(
    values: Mapping[str, Any], outcomes: Mapping[str, Outcome], targets: Sequence[Mapping[str, Any]], seconds: float
) -> list[str]:
    """Return the run in about a hundred lines: parts, numbers as far as there is room, and the targets last."""
    versions = ", ".join(f"{name} {values['versions'].get(name)}" for name in ("mmad-bank", "torch", "python"))
    head = ["", f"===== summary: {', '.join(values['machine']['gpu'])}; {versions}; {seconds:.0f} s ====="]
    for name, outcome in outcomes.items():
        last = "" if outcome.ok else outcome.last_line[:120]
        head.append(f"{name:12s} {outcome.verdict:14s} {outcome.seconds:4.0f} s  {last}".rstrip())
    tail = [target_words(row)[:230] for row in sorted(targets, key=lambda row: row["met"] != "yes")]
    room = SUMMARY_CHARACTERS - sum(len(line) + 1 for line in [*head, *tail])
    numbers = []
    for line in _numbers(values["parts"]):
        room -= len(line) + 1
        if room > 0:
            numbers.append(line)
    return [*head, *numbers, *tail]


def _numbers(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Yield the rows of all tables, compactly; rows that begin alike stand in one line."""
    tables = [Table.from_json(table) for name, own in parts.items() if name != "targets" for table in own]
    for table in sorted(tables, key=lambda table: table.title in _DETAILS):
        grouped: dict[str, list[str]] = {}
        told = [row for row in table.rows if row.get("verdict") != "ok"]  # the targets count what was right
        for row in told:
            grouped.setdefault(str(row.get(table.columns[0].key)), []).append(row_words(table, row, first=1))
        yield f"-- {table.title}"
        for first, words in grouped.items():
            yield f"{first}: {'; '.join(words)}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], metavar="PART", help="some of the parts; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The times mean nothing")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of the alternating contestants; default: 9")
    parser.add_argument("--seconds", type=float, metavar="BUDGET", help="time of the whole run; default: no bound")
    parser.add_argument("--device", default="cuda", help="device to measure; default: cuda")
    parser.add_argument("--json", type=Path, metavar="PATH", help="folder for gpu.json and log.txt, or a .json file")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: expected at least 1")
    if arguments.seconds is not None and arguments.seconds < 1:
        parser.error("--seconds: expected at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
