"""Small samples and settings: what MDSS needs to be fitted in a moment."""

from __future__ import annotations

from typing import Any

import torch

from mmad_bank.data import Preprocessing, Sample

SIZE = 48
AS_IS = Preprocessing.recipe("mdss", size=SIZE)
SMALL: dict[str, Any] = {
    "rgb_weights": "random", "image_size": SIZE, "pdn_width": 8, "channels": 16, "teacher_images": "own",
    "teacher_steps": 3, "teacher_batch": 2,
    "student_steps": 3, "student_batch": 2, "patch_size": 60, "coverage": (2.0, 3.0), "sdf_steps": 3, "sdf_batch": 3,
    "sdf_queries": 10, "sdf_width": 16,
}  # fmt: skip
LONGER: dict[str, Any] = {**SMALL, "sdf_steps": 53}  # a state is saved every 50 steps, and at the end


def a_part(seed: int, split: str = "train") -> Sample:
    """A prepared sample: a bumpy disc in the middle, its background black and unmeasured."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE) / 1000, torch.arange(SIZE) / 1000, indexing="ij")
    height = 0.3 + 0.004 * torch.sin(x * (200 + 40 * torch.rand(1, generator=generator))) * torch.cos(y * 250)
    xyz, rgb = torch.stack([x + 0.01, y + 0.01, height]), torch.rand(3, SIZE, SIZE, generator=generator) * 0.5 + 0.2
    off = (x - 0.024) ** 2 + (y - 0.024) ** 2 > 0.016**2
    xyz[:, off] = rgb[:, off] = 0
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    return Sample(rgb, xyz, mask, id=f"part/{split}/good/{seed:03d}", split=split, preparation=AS_IS)


def parts(n: int = 4) -> list[Sample]:
    return [a_part(seed) for seed in range(n)]


VALIDATION = [a_part(seed, "validation") for seed in (20, 21, 22)]
