"""The CUDA kernels of points under the address sanitizer, on values that no host has checked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cuda_emulator

SANITIZER = ("-g1", "-fsanitize=address")


@pytest.mark.slow
def test_no_value_leads_out_of_bounds(tmp_path: Path) -> None:
    try:
        cuda_emulator.find_compiler()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    assert cuda_emulator.run_checks(tmp_path, "cuda_memory_checks.cpp", SANITIZER) == ""
