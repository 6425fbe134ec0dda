"""Small samples and settings: what Shape-guided needs to be fitted in a moment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from small_mdss import SIZE
from small_mdss import a_part as bare_part

from mmad_bank.data import Preprocessing, Sample

GRID = (12, 12)
AS_IS = Preprocessing.recipe("m3dm", size=SIZE)
SMALL: dict[str, Any] = {
    "rgb": "efficientnet_lite0", "rgb_weights": "random", "rgb_layers": (1,), "grid": GRID, "image_size": SIZE,
    "patch_size": 60, "coverage": (2.0, 3.0), "sdf_steps": 3, "sdf_batch": 3, "sdf_queries": 10, "sdf_width": 16,
}  # fmt: skip


def a_part(seed: int, split: str = "train") -> Sample:
    return replace(bare_part(seed, split), preparation=AS_IS)
