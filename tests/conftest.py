"""Fixtures that all tests share."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def texture_features() -> np.ndarray:
    """Patch features (7840, 656) of real texture images from a CNN with ImageNet weights."""
    textures = pytest.importorskip("mmad_bank.data.textures")
    return textures.texture_features(10)
