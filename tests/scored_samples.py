"""A method whose scores are known, and samples for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmad_bank.data import Preprocessing, Sample
from mmad_bank.errors import InputError
from mmad_bank.methods import Method, Part, Prediction

SIZE = 32


class Darkness(Method):
    """Scores an image by two channels: the map is their sum, the parts are the channels."""

    name = "darkness"

    def __init__(self) -> None:
        self.image_size, self.seed, self.device = SIZE, 0, "cpu"
        self._begin()
        self.preprocessing_, self.train_ids_ = Preprocessing(size=SIZE), ["part/train/good/000"]
        self.batches: list[int] = []

    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        self.batches.append(len(samples))
        for sample in samples:
            if sample.id.endswith("bad"):
                raise InputError(f"{sample.id}: expected something\nelse")
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Prediction:
        parts = {name: Part(float(sample.rgb[i].max()), sample.rgb[i]) for i, name in enumerate(("rgb", "xyz"))}
        whole = sample.rgb[:2].sum(dim=0) + (torch.inf if sample.id.endswith("infinite") else 0)
        return Prediction(float(whole.max()), whole, sample, parts)

    def _fit(self, *args: Any) -> None:
        raise NotImplementedError

    def _save(self, folder: Path) -> dict[str, Any]:
        raise NotImplementedError

    def _load(self, folder: Path, learnt: dict[str, Any]) -> None:
        raise NotImplementedError


def make(number: int, defect: str = "good", *, category: str = "part", masked: bool = True) -> Sample:
    """Noise; on defects a square is brighter in one channel or in both."""
    rng = np.random.default_rng([number, len(defect)])
    rgb = torch.from_numpy(rng.uniform(0, 0.6, (3, SIZE, SIZE)).astype(np.float32))
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    if defect != "good":
        mask[8:14, 8 + number : 16 + number] = True
        for channel in {"colour": (0,), "shape": (1,)}.get(defect, (0, 1)):
            rgb[channel][mask] += 0.3
    return Sample(
        rgb, torch.ones(3, SIZE, SIZE), mask if masked else None, int(defect != "good"), defect, category,
        id=f"{category}/test/{defect}/{number:03}", preparation=Preprocessing(size=SIZE),
    )  # fmt: skip
