"""The centre that rows are rounded about is the same on the CPU (csrc/cpu/operand.cpp) and on a CUDA device."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_bank.ops._cuda.operand import robust_center

CSRC = Path(__file__).parents[2] / "csrc"
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "mmad/operand.hpp"
int main(int, char** argv) {
  const long count = std::atol(argv[1]), dim = std::atol(argv[2]);
  std::vector<float> rows(count * dim);
  if (std::fread(rows.data(), 4, rows.size(), stdin) != rows.size()) return 1;
  const auto frame = mmad::screening_frame({rows.data(), count, dim});
  return std::fwrite(frame.center.data(), 4, frame.center.size(), stdout) != frame.center.size();
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("center")
    (folder / "main.cpp").write_text(PROGRAM)
    flags = ["-std=c++17", "-O1", "-fopenmp-simd", "-DMMAD_CLONES=", f"-I{CSRC}", f"-I{CSRC / 'include'}", "-pthread"]
    sources = [str(CSRC / "cpu" / name) for name in ("operand.cpp", "bytes.cpp", "parallel.cpp", "cpu_features.cpp")]
    subprocess.run(["g++", *flags, str(folder / "main.cpp"), *sources, "-o", str(folder / "center")], check=True)
    return folder / "center"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 255, 256, 257, 511, 1000, 9001])
def test_both_take_the_same_sample(program: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    rows = (rng.normal(size=(count, 7)) * 10.0 ** rng.integers(-3, 4, 7) + rng.normal(size=7)).astype(np.float32)
    rows[:: max(3, count // 20)] *= 1e15
    if count > 5:
        rows[count // 2, :3] = np.nan, np.inf, -np.inf
    command = [str(program), str(count), "7"]
    done = subprocess.run(command, input=rows.tobytes(), capture_output=True, check=True)
    expected = np.frombuffer(done.stdout, np.float32)
    found = robust_center(torch.from_numpy(rows), torch.device("cpu")).numpy()
    # Sums in float64, in another order: only a value half-way between two float32 numbers can be rounded otherwise.
    np.testing.assert_array_max_ulp(found, expected, maxulp=1)
    assert np.isfinite(found).all()
