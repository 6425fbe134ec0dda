"""Fixtures that all tests share."""

import signal

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let child processes be interrupted: those of a shell's background job inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def texture_features() -> np.ndarray:
    """Patch features (7840, 656) of real texture images from a CNN with ImageNet weights."""
    textures = pytest.importorskip("mmad_bank.data.textures")
    return textures.texture_features(10)
