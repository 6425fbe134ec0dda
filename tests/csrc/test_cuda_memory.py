"""CUDA kernels under the address sanitizer: those of points on values that no host has checked, and shards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cuda_emulator

SANITIZER = ("-g1", "-fsanitize=address")


SHARD = ("k_center_shard.cu", "k_center_rows.cu", "radix_select.cu", "operand.cu", "product.cu", "product_wgmma.cu")


@pytest.fixture(autouse=True)
def _needs_the_emulator() -> None:
    try:
        cuda_emulator.find_compiler()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
def test_no_value_leads_out_of_bounds(tmp_path: Path) -> None:
    assert cuda_emulator.run_checks(tmp_path, "cuda_memory_checks.cpp", SANITIZER) == ""


@pytest.mark.slow
def test_shards_stay_within_their_arrays(tmp_path: Path) -> None:
    assert cuda_emulator.run_checks(tmp_path, "cuda_shard_checks.cpp", SANITIZER, SHARD) == ""
