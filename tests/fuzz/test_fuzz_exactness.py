"""A short run of fuzz_exactness.py on the plainest and the best instruction set; it sees what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmad_bank.ops import system_info

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import fuzz_exactness


@pytest.mark.parametrize(
    "how", [["--isa", "generic"], ["--isa", system_info()["cpu"]["in use"]], ["--engine", "torch"]]
)
def test_no_mismatch(how: list[str]) -> None:
    command = [sys.executable, str(HERE / "fuzz_exactness.py"), "--searches", "1500", "--selections", "20", *how]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert all("0 mismatches" in line for line in found.stdout.splitlines())


def test_wrong_answers_are_seen() -> None:
    bank = np.array([[0.0], [1.0], [1.0], [3.0]], np.float32)
    right = (np.array([0.0, 1.0], np.float32), np.array([0, 1]))
    assert fuzz_exactness.wrong_search(bank, bank[0], *right) == ""
    for distances, found in (([0.0, 1.0], [0, 2]), ([0.0, 3.0], [0, 3]), ([0.0, 1.1], [0, 1]), ([0.0, 0.0], [0, 0])):
        assert fuzz_exactness.wrong_search(bank, bank[0], np.array(distances, np.float32), np.array(found))
    assert fuzz_exactness.wrong_selection(bank, np.array([0, 3, 1, 2]), 0) == ""
    for picks in ([0, 1, 3, 2], [0, 3, 2, 1], [0, 3, 1, 1], [1, 3, 0, 2]):
        assert fuzz_exactness.wrong_selection(bank, np.array(picks), 0)
