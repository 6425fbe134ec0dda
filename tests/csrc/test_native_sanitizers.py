"""The CPU kernels and libmmad under the address, undefined-behaviour and thread sanitizers.

The programs are native_checks.cpp and library_checks.cpp.

A minute on two cores, nearly all of it compilation. MMAD_BANK_SANITIZER_ROUNDS=2000 makes it hours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
ROUNDS = os.environ.get("MMAD_BANK_SANITIZER_ROUNDS", "6")
# One plain version of every loop: sanitizers are not ready yet when the loader chooses between clones.
FLAGS = ["-std=c++17", "-O1", "-g1", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-DMMAD_CLONES="]
FLAGS += ["-fno-sanitize-recover=all", f"-I{CSRC}", f"-I{CSRC / 'include'}"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux only"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


PROGRAMS = ("native_checks", "library_checks")


def build(folder: Path, sanitizers: str) -> list[Path]:
    own = [HERE / f"{name}.cpp" for name in PROGRAMS]
    sources = [*own, *sorted((CSRC / "cpu").glob("*.cpp")), *sorted((CSRC / "lib").glob("*.cpp"))]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run(["g++", *FLAGS, f"-fsanitize={sanitizers}", "-c", str(source), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, sources))
    shared = [str(one) for one in objects[len(PROGRAMS) :]]
    for name, one in zip(PROGRAMS, objects, strict=False):
        command = ["g++", f"-fsanitize={sanitizers}", str(one), *shared, "-pthread", "-o", str(folder / name)]
        subprocess.run(command, check=True)
    return [folder / name for name in PROGRAMS]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_clean(sanitizers: str, tmp_path: Path) -> None:
    for program in build(tmp_path, sanitizers):
        found = subprocess.run([str(program), ROUNDS], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-8000:]
        assert found.stdout.endswith("0 wrong\n")


@pytest.mark.parametrize(
    ("sanitizers", "fault", "word"),
    [
        ("address,undefined", "volatile int n = 2; int* p = new int[n]; return p[argc + 1];", "heap-buffer-overflow"),
        ("address,undefined", "int i = 2147483647; return i + argc;", "signed integer overflow"),
        ("thread", "int n = 0; std::thread t([&] { ++n; }); ++n; t.join(); return n - 2;", "data race"),
    ],
)
def test_the_sanitizers_see_faults(sanitizers: str, fault: str, word: str, tmp_path: Path) -> None:
    source, program = tmp_path / "fault.cpp", tmp_path / "fault"
    source.write_text(f"#include <thread>\nint main(int argc, char**) {{ {fault} }}\n")
    command = ["g++", *FLAGS, f"-fsanitize={sanitizers}", str(source), "-pthread", "-o", str(program)]
    subprocess.run(command, check=True)
    found = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert word in found.stderr
