"""Parts that run processes: each kernel against float64, the tests marked gpu, and the sanitizer's tools."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from common import ROOT, Column, Table

from gpu_parts.jobs import Job, Outcome, run_jobs
from gpu_parts.measuring import Report

SMOKE = ROOT / "benchmarks" / "gpu_parts" / "smoke.py"
TOOLS = ("memcheck", "racecheck", "synccheck")
_CHECK_S, _TEST_S, _SANITIZED_S = 60.0, 150.0, 100.0
_EACH_TEST_S = 60
_ALONE = "growth or memory_than"  # these look at all of the device's memory: nobody else may use it meanwhile
_HALVES = {"test_cuda_kernels.py": "knn or query or bank"}  # long files: tests whose names hold these, and the others
_SHOWN = 120  # lines of what failed
_NOT_SANITIZED = {"graph"}  # PyTorch captures nothing without its caching allocator; the others launch the same kernels


def cases() -> tuple[str, ...]:
    """Name the checks of smoke.py; it is not imported, because this process needs no device."""
    found = re.search(r"^CASES: .*?\{(.*?)^\}", SMOKE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    return tuple(re.findall(r'"(\w+)": ', found[1]))


def _at_once() -> int:
    return max(2, min(16, os.cpu_count() or 1))


def _show(outcome: Outcome) -> None:
    """Print the last lines of a job that failed."""
    for line in [] if outcome.ok else outcome.text.splitlines()[-_SHOWN:]:
        print(f"    | {line[:200]}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels against float64


def run_smoke(report: Report) -> None:
    """Run every check in a process of its own, side by side."""
    table = report.table("Kernels against float64", [*_COLUMNS, Column("last", "last line")])
    full = [] if report.sizes.small else ["full"]
    jobs = [Job(case, [sys.executable, str(SMOKE), case, *full], _CHECK_S, _few_threads()) for case in cases()]
    outcomes = []
    for outcome in run_jobs(jobs, _at_once(), report.left()):
        _add(report, table, outcome)
        outcomes.append(outcome)
    report.target("kernels against float64", "all right", *_together(outcomes, "all right"))


_COLUMNS = [Column("name", "check"), Column("verdict", "verdict"), Column("seconds", "s", ".1f")]


def _add(report: Report, table: Table, outcome: Outcome) -> None:
    words = {"name": outcome.name, "verdict": outcome.verdict, "seconds": outcome.seconds, "last": outcome.last_line}
    report.row(table, **words)
    _show(outcome)


def _few_threads() -> dict[str, str]:
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")


# ---------------------------------------------------------------------------------------------------------------------
# Tests


def gpu_test_files(tests: Path = ROOT / "tests") -> list[Path]:
    """Return the test files in which something is marked gpu."""
    mark = re.compile(r"^[^#\n]*\bpytest\.mark\.gpu\b", re.MULTILINE)
    return sorted(path for path in tests.rglob("test_*.py") if mark.search(path.read_text(encoding="utf-8")))


def run_tests(report: Report) -> None:
    """Run every test that is marked for a GPU: files side by side, then those that need the device alone."""
    table = report.table("Tests marked gpu", [*_COLUMNS, Column("last", "last line")])
    if importlib.util.find_spec("pytest") is None:
        report.target("tests marked gpu", "all pass", "pytest is not installed", None)
        return
    files = gpu_test_files()
    together = [job for path in files for job in _jobs_of(path)]
    alone = [_test_job(f"{path.stem}, alone", path, _ALONE) for path in files if _has_alone(path)]
    for jobs, at_once in ((together, _at_once()), (alone, 1)):
        for outcome in run_jobs(jobs, at_once, report.left()):
            _add(report, table, outcome)
            for line in re.findall(r"^(?:FAILED|ERROR) .*", outcome.text, re.MULTILINE):
                print(f"    {line[:220]}", flush=True)
            counts = _counts(outcome)
            passed = outcome.ok and "passed" in counts  # where all are skipped, nothing was shown
            what = f"tests {outcome.name}"
            report.target(what, "all pass", counts, None if outcome.verdict == "not run" else passed)


def _jobs_of(path: Path) -> Iterator[Job]:
    rest = f"not ({_ALONE})" if _has_alone(path) else None
    half = _HALVES.get(path.name)
    if half is None:
        yield _test_job(path.stem, path, rest)
        return
    for name, chosen in ((half, half), (f"not {half}", f"not ({half})")):
        yield _test_job(f"{path.stem}, {name}", path, chosen if rest is None else f"({chosen}) and {rest}")


def _has_alone(path: Path) -> bool:
    return bool(re.search(r"^def test_\w*(growth|memory_than)", path.read_text(encoding="utf-8"), re.MULTILINE))


def _test_job(name: str, path: Path, chosen: str | None) -> Job:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rfEs", "-p", "no:cacheprovider", "--tb", "short"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command += ["--timeout", str(_EACH_TEST_S), "--timeout-method", "thread"]
    command += [] if chosen is None else ["-k", chosen]
    return Job(name, [*command, str(path)], _TEST_S, _few_threads())


def _counts(outcome: Outcome) -> str:
    """Return pytest's own count, or what else was said last."""
    kinds = "passed|failed|skipped|deselected|errors?"
    found = re.findall(rf"^(?:=+ )?(\d+ (?:{kinds})\b.*?)(?: =+)?$", outcome.text, re.MULTILINE)
    return str(found[-1]) if found else f"{outcome.verdict}: {outcome.last_line}"


# ---------------------------------------------------------------------------------------------------------------------
# Sanitizer


def run_sanitizer(report: Report) -> None:
    """Run the checks at tiny sizes under memcheck, racecheck and synccheck."""
    columns = [Column("tool", "tool"), Column("name", "check"), *_COLUMNS[1:], Column("last", "last line")]
    table = report.table("Kernels under compute-sanitizer", columns)
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        for tool in TOOLS:
            report.target(f"compute-sanitizer {tool}", "no errors", "compute-sanitizer was not found", None)
        return
    jobs = [_sanitized(program, tool, case) for tool in TOOLS for case in cases() if case not in _NOT_SANITIZED]
    found: dict[str, list[Outcome]] = {tool: [] for tool in TOOLS}
    for outcome in run_jobs(jobs, _at_once(), report.left()):
        tool, _, case = outcome.name.partition(" ")
        found[tool].append(replace(outcome, name=case))
        words = {"verdict": outcome.verdict, "seconds": outcome.seconds, "last": _summary(outcome)}
        report.row(table, tool=tool, name=case, **words)
        _show(outcome)
    for tool, outcomes in found.items():
        report.target(f"compute-sanitizer {tool}", "no errors", *_together(outcomes, "clean"))


def _sanitized(program: str, tool: str, case: str) -> Job:
    command = [program, "--tool", tool, "--error-exitcode", "86", "--target-processes", "all", "--print-limit", "20"]
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **_few_threads()}
    return Job(f"{tool} {case}", [*command, sys.executable, str(SMOKE), case], _SANITIZED_S, environment)


def _summary(outcome: Outcome) -> str:
    """Return the tool's summary; a hang or a crash has none."""
    found = [line.strip("= ") for line in outcome.text.splitlines() if "SUMMARY" in line]
    return ([outcome.last_line, *found])[-1]


def _together(outcomes: Sequence[Outcome], good: str) -> tuple[str, bool | None]:
    """Count outcomes: one that is wrong or hung decides; what was not run leaves it open."""
    by_kind: dict[str, list[str]] = {}
    for one in outcomes:
        kind = "good" if one.ok else "not run" if one.verdict == "not run" else "hung" if one.hung else "failed"
        by_kind.setdefault(kind, []).append(one.name)
    words = f"{len(by_kind.pop('good', []))} of {len(outcomes)} {good}"
    words += "".join(f"; {kind}: {', '.join(names)}" for kind, names in by_kind.items())
    return words, False if {"failed", "hung"} & set(by_kind) else None if by_kind else True
