"""Fixtures that all tests share."""

import contextlib
import os
import signal
from collections.abc import Iterator

# Before PyTorch loads OpenMP, here and in child processes: its threads sleep while they wait for work. By default they
# spin, and where all cores are busy (`pytest -m slow` runs beside `pytest`) small operators take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch

from mmad_bank.errors import MissingExtraError


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let child processes be interrupted: those of a shell's background job inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def texture_features() -> np.ndarray:
    """Patch features (7840, 656) of real texture images from a CNN with ImageNet weights."""
    textures = pytest.importorskip("mmad_bank.synthetic.textures")
    try:
        return textures.texture_features(10)
    except MissingExtraError as missing:  # neither kept in MMAD_BANK_CACHE, nor can they be made here
        pytest.skip(f"needs the features of texture images: {missing}")


@pytest.fixture(params=["autocast", "default dtype"])
def callers_settings(request: pytest.FixtureRequest) -> contextlib.AbstractContextManager[object]:
    """What a caller may have set up for its own networks: nothing of the package may depend on it."""

    @contextlib.contextmanager
    def float64_by_default() -> Iterator[None]:
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)

    return torch.autocast("cpu", dtype=torch.bfloat16) if request.param == "autocast" else float64_by_default()
