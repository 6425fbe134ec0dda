"""AVX-512, VNNI and AMX kernels on an emulated processor: `pip install bochscpu-python` (x86-64 Linux) to run these."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
from cpu_emulated_checks import CASES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("bochscpu") is None, reason="bochscpu-python is not installed"),
    pytest.mark.skipif((platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="x86-64 Linux only"),
    pytest.mark.skipif(not all(map(shutil.which, ("cc", "c++", "objdump"))), reason="needs cc, c++ and objdump"),
]

FLAGS = ["-std=c++17", "-O3", "-fopenmp-simd", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
# Clones are chosen by the real processor when the library is loaded: compile the AVX-512 ones only.
AVX512_CLONES = ["-march=x86-64-v4", "-DMMAD_CLONES="]
POINT_CLOUDS = {"point_tree", "farthest_point_sample", "knn_group", "interpolate_features"}  # nothing beyond AVX2 there


def compile_kernels(folder: Path) -> Path:
    sources = [path for path in (ROOT / "csrc" / "cpu").glob("*.cpp") if path.stem not in POINT_CLOUDS]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        clones = AVX512_CLONES if "MMAD_CLONES" in source.read_text() else []
        include = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc'}"]
        subprocess.run(["c++", *FLAGS, *clones, *include, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*sources, HERE / "cpu_emulated_kernels.cpp"]))
    library = folder / "kernels.so"
    subprocess.run(["c++", "-shared", "-pthread", "-o", library, *objects], check=True)
    return library


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("emulated")
    library = compile_kernels(folder)
    environment = {**os.environ, "LD_BIND_NOW": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "cpu_emulated_checks.py"), str(library), str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
def test_emulated(case: str, failures: dict[str, str]) -> None:
    assert case not in failures, failures[case]
