"""Small samples and settings: what a method needs to be fitted in a moment."""

from __future__ import annotations

from typing import Any

import torch

from mmad_bank.data import Preprocessing, Sample

SIZE = 64
AS_IS = Preprocessing.recipe("cfm", size=SIZE)
RGB: dict[str, Any] = {
    "rgb": "efficientnet_lite0", "rgb_weights": "random", "rgb_layers": (1,), "image_size": SIZE, "grid": (8, 8),
}  # fmt: skip
"""Arguments of methods with an extractor of colour images."""
CFM_ARGUMENTS: dict[str, Any] = {
    "rgb_weights": "random", "xyz_weights": "random", "num_groups": 24, "group_size": 8, "image_size": SIZE,
    "grid": (8, 8), "map_size": 32, "epochs": 2, "batch": 2, "pixels_per_image": 100,
}  # fmt: skip
"""Arguments of a CFM beside the extractor of colour images."""


def a_part(seed: int, name: str = "") -> Sample:
    """A prepared sample: a disc in the middle, bumpy and of a colour that follows its height."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE) / 1000, torch.arange(SIZE) / 1000, indexing="ij")
    height = 0.3 + 0.01 * torch.sin(x * (200 + 40 * torch.rand(1, generator=generator))) * torch.cos(y * 250)
    xyz = torch.stack([x + 0.01, y + 0.01, height])
    off = (x - 0.032) ** 2 + (y - 0.032) ** 2 > 0.027**2
    xyz[:, off] = 0
    rgb = torch.stack([(height - 0.28) * 25, x * 10, torch.rand(SIZE, SIZE, generator=generator) * 0.2 + 0.3])
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    name = name or f"part/train/good/{seed:03d}"
    return Sample(rgb.clamp(0, 1), xyz, mask, id=name, split="train", preparation=AS_IS)
