"""Common parts of all benchmarks: the machine and its ceilings, versions, interleaved timing, tables, result files."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch

import mmad_bank
from mmad_bank import _core
from mmad_bank._internal.files import replacing
from mmad_bank.cli._output import check_output, check_output_folder
from mmad_bank.errors import InputError, MmadBankError
from mmad_bank.evaluation import FUSED, RESULT

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = 1
PACKAGES = ("torch", "numpy", "faiss-cpu", "faiss-gpu", "scikit-learn", "anomalib", "hnswlib", "usearch", "timm",
            "onnxruntime", "openvino")  # fmt: skip
ISA_FLAGS = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Options:
    """Options that the command line asked for."""

    threads: int
    rounds: int
    quick: bool = False
    full: bool = False  # run slow peers whole, where they are otherwise extrapolated
    workdir: Path | None = None
    keep: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def describe_machine(threads: int) -> dict[str, Any]:
    """Describe what the figures were measured on; a value that the system does not tell is None."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": _core.active_isa(),
        "flags": [flag for flag in ISA_FLAGS if flag in _cpu_flags()],
        "caches": _caches(),
        "memory_gib": _memory_gib(),
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg()[0],
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    found = re.search(r"^flags\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return set(found[1].split()) if found else set()


def _caches() -> dict[str, str]:
    """Return the sizes of the first core's caches, ``{"L1d": "32K", ...}``."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_read(f"{index}/type").strip(), "")
        sizes[f"L{_read(f'{index}/level').strip()}{kind}"] = _read(f"{index}/size").strip()
    return sizes


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return None


def machine_slug(machine: Mapping[str, Any]) -> str:
    """Return a file-name part for a machine: ``amd-epyc-2-cores-avx2``."""
    name = re.sub(r"\((r|tm)\)|\bcpu\b|processor|@.*", " ", machine["cpu"].lower())
    words = re.findall(r"[a-z0-9]+", f"{name} {machine['threads']} cores {machine['isa']}")
    return "-".join(words)


def versions() -> dict[str, str | None]:
    """Return the versions of this project (with its git revision), Python and the peers; None if not installed."""
    found: dict[str, str | None] = {"mmad-bank": _own_version(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if found["faiss-gpu"] is None:
        del found["faiss-gpu"]
    return found


def _own_version() -> str:
    version = mmad_bank.__version__
    revision = _git("rev-parse", "--short=10", "HEAD")
    if not revision:
        return version
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "mmad_bank", "csrc", "setup.py")
    return f"{version} (git {revision}{', with uncommitted changes' if changed else ''})"


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def set_threads(threads: int) -> None:
    """Give every thread pool of this process, and those of the processes it starts, the same number of threads."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    torch.set_num_threads(threads)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return
    threadpool_limits(threads)  # the pools of the libraries that are loaded by now: FAISS's and NumPy's


# ---------------------------------------------------------------------------------------------------------------------
# Its ceilings


CEILINGS = {
    "fp32_gflops": "matrix product, float32, GFLOP/s",
    "bf16_gflops": "matrix product, bfloat16, GFLOP/s",
    "copy_gbs": "memory copy, GB/s",
    "triad_gbs": "memory triad, GB/s",
}


def matmul_gflops(dtype: torch.dtype, side: int, rounds: int = 5) -> float:
    """Measure square matrix products of PyTorch: the best of several, in GFLOP/s."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / min(_stopwatch(lambda: a @ b) for _ in range(rounds + 1)) / 1e9


def stream_gbs(megabytes: int, rounds: int = 5) -> dict[str, float]:
    """Measure memory streams, the best of several in GB/s: ``b = a`` (copy) and ``c = a + s·b`` (triad)."""
    n = megabytes * 10**6 // 4
    a, b, c = torch.zeros(n), torch.ones(n), torch.ones(n)
    copy = min(_stopwatch(lambda: b.copy_(a)) for _ in range(rounds + 1))
    triad = min(_stopwatch(lambda: torch.add(a, b, alpha=3.0, out=c)) for _ in range(rounds + 1))
    return {"copy": 8 * n / copy / 1e9, "triad": 12 * n / triad / 1e9}


def ceilings(*, quick: bool = False) -> dict[str, float]:
    """Measure what the machine can do: matrix products in GFLOP/s and memory streams in GB/s."""
    side, rounds = (512, 2) if quick else (2048, 5)
    probe = matmul_gflops(torch.bfloat16, 256, 1)
    # Where bfloat16 is emulated, one large product can take a minute.
    bf16 = matmul_gflops(torch.bfloat16, side if probe > 50 else 512, rounds)
    stream = stream_gbs(16 if quick else 256, rounds)
    return {
        "fp32_gflops": matmul_gflops(torch.float32, side, rounds),
        "bf16_gflops": bf16,
        "copy_gbs": stream["copy"],
        "triad_gbs": stream["triad"],
    }


def emulates_bfloat16(limits: Mapping[str, float]) -> bool:
    """Tell by its ceilings whether a machine has no units for bfloat16: its products are far slower than float32's."""
    return limits["bf16_gflops"] < limits["fp32_gflops"] / 2


def precision_for(asked: str, limits: Mapping[str, float]) -> str:
    """Return the precision of the networks' products: the machine's faster one where none was asked for."""
    if asked != "auto":
        return asked
    return "float32" if emulates_bfloat16(limits) else "bfloat16"


def _stopwatch(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# ---------------------------------------------------------------------------------------------------------------------
# Interleaved timing

Contestant = Callable[[], Any]
"""One run of a contestant. A float that it returns is its own figure in seconds (an extrapolation); else the clock
counts."""

# OpenMP runtimes keep their threads spinning for a while after a parallel region. Each library brings a runtime of its
# own, so without a pause one contestant's idle threads would take cores away from the next.
PAUSE_S = 0.02


@dataclass
class Timings:
    """Seconds of every contestant in every round, in the order of the rounds."""

    seconds: dict[str, list[float]]

    def of(self, name: str) -> dict[str, Any]:
        """Return a contestant's median, minimum and maximum, and all its samples."""
        samples = self.seconds[name]
        return {
            "median": statistics.median(samples),
            "min": min(samples),
            "max": max(samples),
            "samples": samples,
        }

    def ratios(self, name: str, reference: str) -> list[float]:
        """Return how many times longer than ``reference`` the contestant took, for each round."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[reference], strict=True)]

    def ratio(self, name: str, reference: str) -> float:
        """Return the median of :meth:`ratios`."""
        return statistics.median(self.ratios(name, reference))


def alternate(contestants: Mapping[str, Contestant], rounds: int, *, warmup: int = 1) -> Timings:
    """Run the contestants in turn, A B C A B C ..., so that what disturbs the machine disturbs all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(warmup + rounds):
        for name, work in contestants.items():
            time.sleep(PAUSE_S)
            begin = time.perf_counter()
            own = work()
            elapsed = time.perf_counter() - begin
            if round_ >= warmup:
                seconds[name].append(own if isinstance(own, float) else elapsed)
    return Timings(seconds)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


@dataclass
class Column:
    """A column: the key of its value in a row, its heading, and a format specification (empty for text)."""

    key: str
    heading: str
    format: str = ""
    detail: bool = False  # left out of the index

    def cell(self, row: Mapping[str, Any]) -> str:
        """Return the row's value as text; a missing one is a dash."""
        value = row.get(self.key)
        if value is None:
            return "–"
        if self.key == "result":
            return RESULTS.get(value, str(value))
        return str(value) if isinstance(value, (str, bool)) else format(value, self.format)


RESULTS = {FUSED: RESULT, "fusion": "fusion bank"}
"""Names of results for a reader, where the short name in JSON may be mistaken."""


@dataclass
class Table:
    """A table of measurements. Rows may hold more than the columns show; a result file keeps it all."""

    title: str
    columns: list[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    headline: bool = False  # goes into the index too

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON-ready values."""
        return {**vars(self), "columns": [vars(column) for column in self.columns]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Table:
        """Return the table that :meth:`to_json` described."""
        return cls(**{**values, "columns": [Column(**column) for column in values["columns"]]})


def print_table(table: Table) -> None:
    """Print a table and its notes on standard output."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table.title, style="bold", markup=False)
    shown = RichTable()
    for column in table.columns:
        shown.add_column(column.heading, justify="right" if column.format else "left")
    for row in table.rows:
        shown.add_row(*(column.cell(row) for column in table.columns))
    console.print(shown, markup=False)
    for note in table.notes:
        console.print(f"  {note}", markup=False)
    console.print()


def machine_table(machine: Mapping[str, Any], limits: Mapping[str, float]) -> Table:
    """Return the machine and those of its ceilings that were measured as a table."""
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    facts: dict[str, str | None] = {
        "processor": f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads used",
        "instruction set": f"{machine['isa']} ({' '.join(machine['flags'])})",
        "caches": caches or None,
        "memory": machine["memory_gib"] and f"{machine['memory_gib']:.1f} GiB",
        "GPU": ", ".join(machine["gpu"]) or "none",
        "system": machine["system"],
        "load average at the start": f"{machine['load_average']:.2f}",
    }
    facts |= {CEILINGS[key]: f"{value:.{0 if value >= 100 else 1}f}" for key, value in limits.items()}
    return _two_columns("Machine", facts)


def drift_table(values: Mapping[str, Any]) -> Table:
    """Return the ceilings before and after the parts: far apart, somebody else used the machine meanwhile."""
    columns = [Column("what", ""), Column("before", "before", ".1f"), Column("after", "after", ".1f")]
    before, after = values["ceilings"], values["ceilings_after"]
    rows: list[dict[str, Any]] = [
        {"what": name, "before": before[key], "after": after[key]} for key, name in CEILINGS.items()
    ]
    loads = {"before": values["machine"]["load_average"], "after": values["load_average_after"]}
    rows.append({"what": "load average (this run's own work counts)", **loads})
    return Table("The machine before and after", columns, rows)


def time_table(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    """Return how long the parts of one or more programs took, and all of them together."""
    rows = [
        {"what": f"{program} {part}", "minutes": seconds / 60}
        for program, values in runs
        for part, seconds in values["seconds"].items()
    ]
    rows.append({"what": "together", "minutes": sum(row["minutes"] for row in rows)})
    return Table("Time", [Column("what", "part"), Column("minutes", "minutes", ".1f")], rows)


def versions_table(found: Mapping[str, str | None]) -> Table:
    """Return the versions as a table."""
    return _two_columns("Versions", {name: version or "not installed" for name, version in found.items()})


def _two_columns(title: str, facts: Mapping[str, str | None]) -> Table:
    rows = [{"what": what, "value": value} for what, value in facts.items()]
    return Table(title, [Column("what", ""), Column("value", "")], rows)


# ---------------------------------------------------------------------------------------------------------------------
# Result files


def result(benchmark: str, settings: Mapping[str, Any], threads: int, limits: Mapping[str, float]) -> dict[str, Any]:
    """Return the frame of a result: everything but the parts."""
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(threads),
        "ceilings": dict(limits),
        "versions": versions(),
        "settings": dict(settings),
        "parts": {},
    }


def add_part(values: dict[str, Any], name: str, tables: Iterable[Table]) -> None:
    """Put a part's tables into a result."""
    values["parts"][name] = [table.to_json() for table in tables]


def write_result(values: Mapping[str, Any], path: Path) -> Path:
    """Write a result file (a folder gets ``BENCHMARK-MACHINE-DATE.json``): whole, or not at all."""
    if path.is_dir():
        path = path / f"{values['benchmark']}-{machine_slug(values['machine'])}-{values['date'][:10]}.json"
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Programs


class _Parser(argparse.ArgumentParser):
    """Parser that says in one line what is wrong, as the parts do."""

    def error(self, message: str) -> NoReturn:
        refuse(message)


def parser(description: str | None, parts: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all programs take."""
    made = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(parts)
    made.add_argument("parts", nargs="*", choices=[*parts, []], metavar="PART", help=f"some of {known}; default: all")
    add_common(made)
    made.add_argument("--json", type=Path, metavar="PATH", help="result file, or a folder to name one in")
    return made


def add_common(made: argparse.ArgumentParser, *, rounds: int = 5) -> None:
    """Add the arguments that the suite takes as well."""
    cores = os.cpu_count() or 1
    made.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The figures mean nothing")
    told = f"timed rounds of the interleaved contestants; default: {rounds}"
    made.add_argument("--rounds", type=int, default=rounds, help=told)
    made.add_argument("--threads", type=int, default=cores, help="threads of every library; default: all cores")


def parse(made: argparse.ArgumentParser, *counts: str) -> argparse.Namespace:
    """Read the arguments; ``rounds``, ``threads`` and the ``counts`` must be positive."""
    arguments = made.parse_args()
    if arguments.threads is None:
        arguments.threads = 1 if arguments.quick else os.cpu_count() or 1
    for name in ("rounds", "threads", *counts):
        if getattr(arguments, name) < 1:
            refuse(f"--{name}: expected at least 1, found {getattr(arguments, name)}")
    result, workdir = getattr(arguments, "json", None), getattr(arguments, "workdir", None)
    try:
        if result is not None:
            check_output(result / "result.json" if result.is_dir() else result, "--json", overwrite=True)
        if workdir is not None:
            check_output_folder(workdir, "--workdir")
    except InputError as error:
        refuse(error)
    return arguments


def refuse(line: object) -> NoReturn:
    """End the program for a wrong argument, as argparse does: with one line and exit code 2."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def check_parts(modules: Iterable[ModuleType], arguments: argparse.Namespace) -> None:
    """Let the parts look at their arguments, before anything is measured or printed.

    Raises:
        SystemExit: One is wrong.
    """
    for module in modules:
        try:
            getattr(module, "check", lambda _: None)(arguments)
        except MmadBankError as error:
            refuse(error)


def chosen(contestants: Mapping[str, tuple[str, Any]], wanted: Sequence[str] | None) -> list[str]:
    """Return the contestants whose name or method (the first of each pair) was asked for; all of them for None.

    ``M3DM`` is a contestant, ``m3dm`` all of that method.

    Raises:
        InputError: There is no such contestant or method.
    """
    if wanted is None:
        return list(contestants)
    known = {word for name, (method, _) in contestants.items() for word in (name, method)}
    unknown = [word for word in wanted if word not in known]
    if unknown or not wanted:
        raise InputError(f"--methods: expected some of {'; '.join(contestants)}, found {', '.join(unknown) or 'none'}")
    return [name for name, (method, _) in contestants.items() if name in wanted or method in wanted]


@contextmanager
def working_folder(workdir: Path | None, part: str) -> Iterator[Path]:
    """Yield ``--workdir``, made if it is not there and kept, or a temporary folder."""
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix=f"mmad-bank-{part}-") as folder:
            yield Path(folder)
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        yield workdir


def run_parts(
    benchmark: str,
    work: Mapping[str, Callable[[Mapping[str, float]], list[Table]]],
    settings: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> None:
    """Run the parts, each of which takes the machine's ceilings; print their tables and write the result file."""
    set_threads(arguments.threads)
    limits = ceilings(quick=arguments.quick)
    common_settings = {"quick": arguments.quick, "rounds": arguments.rounds, "parts": list(work)}
    values = result(benchmark, {**common_settings, **settings}, arguments.threads, limits)
    print_table(machine_table(values["machine"], limits))
    print_table(versions_table(values["versions"]))
    values["seconds"] = {}
    for name, measure in work.items():
        begin = time.perf_counter()
        tables = measure(limits)
        values["seconds"][name] = time.perf_counter() - begin
        for table in tables:
            print_table(table)
        add_part(values, name, tables)
        if arguments.json is not None:  # after every part: a later one that fails costs nothing that was measured
            write_result(values, arguments.json)
    values["ceilings_after"] = ceilings(quick=arguments.quick)
    values["load_average_after"] = os.getloadavg()[0]
    print_table(drift_table(values))
    print_table(time_table([(benchmark, values)]))
    if arguments.json is not None:
        print(f"written: {write_result(values, arguments.json)}")
