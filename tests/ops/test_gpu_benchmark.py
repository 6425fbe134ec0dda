"""The GPU benchmark's own code, run on the CPU with emulated kernels and tiny sizes: what it measures means nothing."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mmad_bank.ops import _dispatch
from mmad_bank.ops._cuda import device as device_module

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "csrc"))
import cuda_emulator

TIMED = ("knn", "k_center", "points", "score", "host_memory", "growth")
KERNEL_CHECKS = (
    "knn", "wgmma", "int8", "hard", "long", "host", "k_center", "k_center_wgmma", "extend", "streamed", "farthest",
    "group", "interpolate",
)  # fmt: skip
EXACT = {"k_center": 4, "host_memory": 4, "score": 2}
"""Targets of a part that hold an answer against another one."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, without a device."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.fixture
def emulated(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, with emulated kernels."""
    pytest.importorskip("pybind11")
    try:
        cuda_emulator.find_compiler()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    monkeypatch.setattr(device_module, "native", cuda_emulator.load(ROOT / "build" / "cuda_emulated"))
    monkeypatch.setattr(device_module, "stream_of", lambda where: (0, 0))
    monkeypatch.setattr(device_module, "current", lambda where: contextlib.nullcontext())
    monkeypatch.setattr(_dispatch, "free_memory", lambda where: 1 << 40)
    for name, value in {"synchronize": None, "mem_get_info": (0, 0), "memory_reserved": 0, "empty_cache": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    measuring = importlib.import_module("gpu_parts.measuring")
    monkeypatch.setattr(measuring, "captured", lambda work: work)
    monkeypatch.setattr(measuring, "alternate_ms", run_once)
    monkeypatch.setattr(importlib.import_module("gpu_parts.selection"), "_REPEATS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield gpu
    torch.set_num_threads(threads)


def run_once(contestants: dict[str, Callable[[], object]], *_: Any) -> dict[str, float]:
    for work in contestants.values():
        work()
    return dict.fromkeys(contestants, 1.0)


def tiny(gpu: ModuleType) -> Any:
    return gpu.Sizes(
        knn=((30, 150, 24, 1), (30, 150, 24, 33)), selection=(300, 16, 20), bagel=(200, 8, 9), images=1,
        clouds=(2, 300, 12, 16, 24), searches=3, repeated=(30, 150, 24), loop_picks=3, checked_picks=20, square=64,
        copied=1000, small=True,
    )  # fmt: skip


def report_of(gpu: ModuleType, path: Path | None = None, **options: Any) -> Any:
    return gpu.Report(tiny(gpu), 1, device="cpu", path=path, **options)


# ---- Parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", TIMED)
def test_part(emulated: ModuleType, part: str, tmp_path: Path) -> None:
    report = report_of(emulated, tmp_path / "part.json")
    assert emulated.run_part(report, part) == 0
    words = ("float64", "same rows", "same picks", "on the CPU")
    exact = [row["met"] for row in report.targets if any(word in row["what"] for word in words)]
    assert exact == ["yes"] * EXACT.get(part, 0)
    assert report.targets
    assert part == "growth" or any(table.rows for table in report.tables)
    written = json.loads((tmp_path / "part.json").read_text())
    assert written["targets"] == report.targets
    assert [table["rows"] for table in written["tables"]] == [table.rows for table in report.tables]


def test_a_product_that_hung_is_not_asked_for_again(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    smoke = importlib.import_module("gpu_parts.smoke")
    monkeypatch.setenv(smoke.WISH, "")
    seen = []
    monkeypatch.setattr(gpu, "run_part", lambda report, name: seen.append((name, report.without)) or 0)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--child", "knn", "--file", str(tmp_path / "part.json")])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"seconds": 9, "without": ["wgmma"]}\n'))
    assert gpu.main() == 0
    assert seen == [("knn", ("wgmma",))]
    with smoke.wished(None):
        assert os.environ[smoke.WISH] == "0"
    with smoke.wished("1"):
        assert os.environ[smoke.WISH] == "1"
    assert os.environ[smoke.WISH] == "0"


def test_ceilings(emulated: ModuleType) -> None:
    report = report_of(emulated)
    assert emulated.run_part(report, "ceilings") == 0
    assert [row["unit"] for row in report.tables[0].rows] == ["TFLOP/s", "TB/s"]


def test_knn_names_what_is_missing_and_leaves_out_what_hung(emulated: ModuleType) -> None:
    report = report_of(emulated, without=("wgmma", "int8"))
    assert emulated.run_part(report, "knn") == 0
    rows = {row["name"]: row for row in report.tables[0].rows if row["shape"].endswith("k = 1")}
    assert not any("wgmma" in name or "int8" in name for name in rows)
    assert {"graph replay", "mma.sync, graph replay", "as called", "torch.cdist + topk"} <= set(rows)
    for peer in ("faiss GpuIndexFlatL2", "cuVS brute force, as called"):
        assert rows[peer]["ms"] is None
        assert "not installed" in rows[peer]["note"]
    unmeasured = [row["what"] for row in report.targets if row["met"] == "not measured"]
    assert len(unmeasured) == 2
    estimates = [row["estimate"] for row in report.targets if "mma.sync" in row["what"]]
    assert estimates == ["38–50 %"]


def test_a_wrong_pick_is_counted(emulated: ModuleType) -> None:
    selection = importlib.import_module("gpu_parts.selection")
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    picks = selection.select_by_torch(rows, None, 150, 3, -1.0, None)[0]
    assert selection.picks_not_farthest(rows, picks) == 0
    picks[[70, 140]] = picks[[140, 70]]
    assert selection.picks_not_farthest(rows, picks) >= 1


@pytest.mark.slow
def test_methods_end_to_end(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = importlib.import_module("gpu_parts.methods")
    true = "M3DM, banks of 76 518, 7 652, 7 652"
    published = methods.CONTESTANTS[true]
    assert published.vectors == {"xyz": 76_518, "rgb": 7_652, "fusion": 7_652}
    few = {name: own for name, own in methods.CONTESTANTS.items() if name in ("CFM", true)}
    monkeypatch.setattr(methods, "CONTESTANTS", few)
    report = report_of(gpu)
    assert gpu.run_part(report, "methods") == 0
    speed, stages = report.tables
    assert [row["method"].split(",")[0] for row in speed.rows] == ["CFM", "M3DM"]
    assert all(row["fps"] > 0 and row["fps_batch"] > 0 for row in speed.rows)
    assert {"rgb", "xyz", "search", "decision"} <= set(stages.rows[1])
    assert len(report.targets) == 1


@pytest.mark.slow
def test_a_method_that_does_not_run_costs_no_other(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = importlib.import_module("gpu_parts.methods")
    contestants = {"CFM": methods.Contestant("cfm", {"epochs": 0}), "PatchCore": methods.Contestant("patchcore")}
    monkeypatch.setattr(methods, "CONTESTANTS", contestants)
    monkeypatch.setattr(methods, "_with_banks", lambda fitted, vectors, small: fitted)
    report = report_of(gpu)
    assert gpu.run_part(report, "methods") == 0
    assert [row["method"] for row in report.tables[0].rows] == ["PatchCore, float32"]
    assert report.tables[0].rows[0]["times_cfm"] is None
    (row,) = report.targets
    assert (row["what"], row["met"]) == ("CFM, float32", "NO")
    assert "epochs" in row["measured"]


def test_a_bank_is_grown_to_any_size(gpu: ModuleType) -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 3
    methods = importlib.import_module("gpu_parts.methods")
    bank = methods._grown(methods.MemoryBank(rows, standardization=(3.0, 1.0)), 200)
    assert bank.vectors.shape == (200, 6)
    assert tuple(bank.standardization) == (3.0, 1.0)
    assert bool(((bank.vectors > rows.amin(0) - 1) & (bank.vectors < rows.amax(0) + 1)).all())
    near = torch.cdist(bank.vectors, bank.vectors).fill_diagonal_(torch.inf)
    assert float(near.min()) > 0.01  # no near copies


# ---- Kernel checks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", KERNEL_CHECKS)
def test_kernel_checks(emulated: ModuleType, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    smoke = importlib.import_module("gpu_parts.smoke")
    assert smoke.run(case, device="cpu") == 0
    assert capsys.readouterr().out.endswith(f"{case}: all right\n")


def test_kernel_checks_see_what_is_wrong(emulated: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    smoke = importlib.import_module("gpu_parts.smoke")
    checks = smoke.Checks(device="cpu")
    checks.compare("rows", ("rows", torch.tensor([1, 2, 9]), torch.tensor([1, 2, 3])))
    checks.compare("NaN", ("distances", torch.tensor([float("nan")]), torch.tensor([1.0])))
    checks.compare("shape", ("rows", torch.zeros(2), torch.zeros(3)))
    assert checks.wrong == 3
    assert "1 of 3 differ, first at [2]: 9 for 3, largest gap 6" in capsys.readouterr().out


def test_the_checks_names_are_read_without_a_device(gpu: ModuleType) -> None:
    verification, smoke = (importlib.import_module(f"gpu_parts.{name}") for name in ("verification", "smoke"))
    assert verification.cases() == tuple(smoke.CASES)
    assert set(smoke.CASES) == {*KERNEL_CHECKS, "graph"}  # which needs a device


def test_files_with_gpu_tests_are_found(gpu: ModuleType) -> None:
    verification = importlib.import_module("gpu_parts.verification")
    names = [path.name for path in verification.gpu_test_files()]
    expected = {"test_cuda_kernels.py", "test_cuda_device.py", "test_registration.py", "test_memory_bank.py"}
    assert expected <= set(names)
    assert Path(__file__).name not in names


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("..\n5 passed, 3 deselected in 1.2s\n", 0, ("5 passed, 3 deselected in 1.2s", "yes")),
        ("ss\n2 skipped in 0.1s\n", 0, ("2 skipped in 0.1s", "NO")),
        ("FAILED tests/a.py::b - AssertionError\n1 failed, 5 passed in 3s\n", 1, ("1 failed, 5 passed in 3s", "NO")),
        ("Segmentation fault\n", -11, ("FAILED (-11): Segmentation fault", "NO")),
    ],
)
def test_what_pytest_counts(gpu: ModuleType, text: str, code: int, expected: Any, monkeypatch: Any) -> None:
    verification = importlib.import_module("gpu_parts.verification")
    job = python("some", f"import os, sys; print({text!r}, end=''); sys.stdout.flush(); os._exit({code % 256})")
    monkeypatch.setattr(verification, "_jobs_of", lambda path: [job] if path.stem == "test_registration" else [])
    monkeypatch.setattr(verification, "_has_alone", lambda path: False)
    report = report_of(gpu)
    verification.run_tests(report)
    (row,) = report.targets
    assert (row["measured"].replace("FAILED (245)", "FAILED (-11)"), row["met"]) == expected


@pytest.mark.parametrize(
    ("codes", "met"), [((0, 0), "yes"), ((0, 86), "NO"), ((0, None), "NO"), ((0, "none"), "not measured")]
)
def test_the_sanitizers_findings(gpu: ModuleType, codes: Any, met: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verification = importlib.import_module("gpu_parts.verification")
    verdicts = {0: "ok", 86: "FAILED (86)", None: "TIMEOUT (9 s)", "none": "not run"}
    found = [verification.Outcome(f"memcheck {case}", verdicts[code]) for case, code in enumerate(codes)]
    monkeypatch.setattr(verification, "run_jobs", lambda jobs, at_once, seconds: iter(found))
    monkeypatch.setattr(verification, "TOOLS", ("memcheck",))
    monkeypatch.setattr(verification.shutil, "which", lambda name: name)
    report = report_of(gpu)
    verification.run_sanitizer(report)
    assert [row["met"] for row in report.targets] == [met]


# ---- Processes -------------------------------------------------------------------------------------------------------


def python(name: str, program: str, limit: float = 60.0) -> Any:
    return importlib.import_module("gpu_parts.jobs").Job(name, [sys.executable, "-c", program], limit)


def test_a_hang_and_a_failure_cost_one_job_each(gpu: ModuleType) -> None:
    jobs = importlib.import_module("gpu_parts.jobs")
    wanted = [
        python("fine", "print('well')"),
        python("fails", "import sys; print('Error: no'); print('bye'); sys.exit(86)"),
        python("hangs", "import time; print('begun', flush=True); time.sleep(60)", 1.0),
    ]
    began = time.monotonic()
    found = {one.name: (one.verdict, one.last_line) for one in jobs.run_jobs(wanted, 3, 30.0)}
    assert found["fine"] == ("ok", "well")
    assert found["fails"] == ("FAILED (86)", "Error: no")
    assert found["hangs"] == ("TIMEOUT (1 s)", "begun")
    assert time.monotonic() - began < 20
    assert [one.verdict for one in jobs.run_jobs(wanted, 3, 1.0)] == ["not run"] * 3


PART = """
import json, pathlib, sys, time
told, file = json.loads(sys.stdin.readline()), pathlib.Path(sys.argv[sys.argv.index("--file") + 1])
part = sys.argv[sys.argv.index("--child") + 1]
assert part != "points" or told["without"] == ["wgmma"]
table = {"title": part, "columns": [{"key": "name", "heading": "name"}], "rows": [], "notes": [], "headline": False}
verdict = "TIMEOUT (60 s)" if part == "smoke" else "ok"
table["rows"].append({"name": "wgmma", "verdict": verdict})
target = {"what": part, "wanted": "w", "estimate": None, "measured": "m", "met": "yes"}
file.write_text(json.dumps({"tables": [table], "targets": [target]}))
print("measured", part, flush=True)
if part == "knn":
    time.sleep(60)
if part == "k_center":
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""


@pytest.mark.slow
def test_parts_that_hang_or_fail_leave_what_they_had(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "part.py").write_text(PART)
    monkeypatch.setitem(gpu.PARTS, "knn", ("search", 3.0))
    monkeypatch.setattr(gpu, "LEAST_S", 1.0)
    chosen = ["smoke", "knn", "k_center", "points"]
    values = gpu.result("gpu", {"quick": True, "rounds": 1, "parts": chosen}, 1, {})
    run = gpu.Run(values, chosen, None, tmp_path / "out")
    monkeypatch.setattr(gpu, "PATIENCE", 1)
    run.all_parts(tmp_path, [sys.executable, str(tmp_path / "part.py")])
    assert run.finish() == 2
    written = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert list(written["parts"]) == [*chosen, "targets"]
    rows = {row["what"]: (row["measured"], row["met"]) for row in written["parts"]["targets"][0]["rows"]}
    assert rows["knn"] == rows["points"] == ("m", "yes")
    assert rows["part knn"] == ("TIMEOUT (3 s): measured knn", "NO")
    assert rows["part k_center"][0].startswith("FAILED (1): RuntimeError: CUDA error: an illegal memory")
    assert "part points" not in rows
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("measured knn") >= 1
    assert "summary" in log
    assert len(capsys.readouterr().out) < 12_000


def test_a_result_becomes_a_page(gpu: ModuleType, tmp_path: Path) -> None:
    pages = importlib.import_module("pages")
    settings = {"quick": False, "rounds": 1, "parts": ["knn"], "seconds": None, "device": "cuda"}
    run = gpu.Run(gpu.result("gpu", settings, 1, {}), ["knn"], 1.0, tmp_path / "gpu.json")
    run.all_parts(tmp_path, ["no such program"])
    values = importlib.import_module("newest").read(tmp_path / "gpu.json")
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    page = pages.pages([values], [], tmp_path, readme)["gpu.md"]
    assert "| part knn | runs | – | no time was left | not measured |" in page
    assert "python benchmarks/gpu.py --rounds 1 --device cuda --json benchmarks/results" in page


def test_parts_without_time_are_not_run(gpu: ModuleType, tmp_path: Path) -> None:
    values = gpu.result("gpu", {"quick": True, "rounds": 1, "parts": ["knn"]}, 1, {})
    run = gpu.Run(values, ["knn"], 2.0, None)
    run.all_parts(tmp_path, ["no such program"])
    assert run.targets()[0]["measured"] == "no time was left"
    assert run.finish() == 0


def test_the_summary_fits_whatever_was_measured(gpu: ModuleType) -> None:
    values = gpu.result("gpu", {"quick": True, "rounds": 1, "parts": ["knn"]}, 1, {})
    table = gpu.Table("Long", [gpu.TARGET_COLUMNS[0]], [{"what": f"{i} {'x' * 90}"} for i in range(500)])
    values["parts"] = {"knn": [table.to_json()]}
    target = {"what": "met at the end", "wanted": "w", "estimate": None, "measured": "m", "met": "NO"}
    lines = gpu.summary(values, {}, [target], 1.0)
    assert len("\n".join(lines)) < 11_000
    assert lines[-1].startswith("target met: NO | met at the end")


def test_every_part_is_there(gpu: ModuleType) -> None:
    for name, (module, _) in gpu.PARTS.items():
        assert callable(getattr(importlib.import_module(f"gpu_parts.{module}"), f"run_{name}"))
        assert name in gpu.__doc__


def test_without_a_device_it_says_so(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "knn"])
    monkeypatch.setattr(gpu._cuda, "available", lambda device: False)
    assert gpu.main() == 1
    assert "found no CUDA device" in capsys.readouterr().out
