"""The arithmetic that CUDA and host code share: rounding, layout, error bounds, digits of the selection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cuda_emulator


def test_shared_arithmetic(tmp_path: Path) -> None:
    try:
        cuda_emulator.find_compiler()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    assert cuda_emulator.run_checks(tmp_path) == ""
