"""Banks and models of every earlier version load, and say what they said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from write import said

pytest.importorskip("open3d")  # FPFH's
VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "said.npz").is_file())


def test_there_are_some() -> None:
    assert "0.1" in [folder.name for folder in VERSIONS]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_what_was_saved_says_the_same(folder: Path) -> None:
    """Rows and nearest rows are the same; scores up to the rounding of another machine's sums."""
    answers = said(folder)
    with np.load(folder / "said.npz") as kept:
        assert set(kept.files) == set(answers)
        for name in kept.files:
            if kept[name].dtype == np.int64:
                np.testing.assert_array_equal(answers[name], kept[name], err_msg=name)
            else:
                near = 1e-4 * float(np.abs(kept[name]).max())
                np.testing.assert_allclose(answers[name], kept[name], rtol=1e-3, atol=near, err_msg=name)
