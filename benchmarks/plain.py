"""M3DM's scoring as it is usually computed, in plain PyTorch: what the engine is measured against.

Features go to the host; a float32 ``torch.cdist`` against every bank, one image at a time; the neighbors of the
nearest vector by a second ``cdist``; each bank's map enlarged and blurred at full size; the decision pixel by pixel.
The networks are those of the method it is made of, in the same precision, so that only the scoring differs.

    python benchmarks/plain.py FOLDER DEVICE        # the memory that a saved M3DM takes when it is scored like this
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mmad_bank import bench
from mmad_bank._internal import sections
from mmad_bank._internal.timing import timed
from mmad_bank.data import Sample
from mmad_bank.methods import Method, Part, Prediction
from mmad_bank.methods.m3dm import M3DM
from mmad_bank.methods.padding import window_cells, window_of
from mmad_bank.methods.prediction import Gaussian

_ROWS = 256  # whose float64 distances exist at a time


class PlainM3DM(M3DM):
    """A fitted M3DM (three banks, DLF) that scores as described above.

    Attributes:
        in_float64: Whether distances are computed in float64. What is usual, and timed, is float32: of
            |a|² + |b|² - 2ab little is left near zero.
    """

    in_float64 = False

    @classmethod
    def of(cls, fitted: Method) -> PlainM3DM:
        """Take over everything that a fitted M3DM has learnt, and its banks' vectors standardized, in memory."""
        plain = cls(**fitted.arguments())
        vars(plain).update(vars(fitted))
        plain.means_ = {name: bank.standardization for name, bank in plain.banks_.items()}
        plain.vectors_ = {
            name: plain._standardized(name, torch.as_tensor(bank.vectors).float())
            for name, bank in plain.banks_.items()
        }
        return plain

    @property
    def bank_bytes(self) -> int:
        """Bytes of the vectors that it compares with."""
        return sum(vectors.nbytes for vectors in self.vectors_.values())

    def _standardized(self, name: str, features: Tensor) -> Tensor:
        own = self.means_[name]
        return features if own is None else (features - own.mean) / own.std

    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        return [self._predict_one(sample) for sample in samples]

    def _predict_one(self, sample: Sample) -> Prediction:
        features = self._features([sample])
        with timed(sections.FUSION):
            patches = self._compose(features)
        with timed(sections.SEARCH):
            found = {}
            for name, rows in patches.items():
                inside, repeated = window_cells(self._grid(name), window_of(sample.frame, self._grid(name)))
                patch, image, near = self._score(name, rows[0].cpu()[inside])
                found[name] = patch[repeated], image, near[repeated]
        with timed(sections.DECISION):
            maps = {name: self._enlarge(distances, self._grid(name)) for name, (distances, _, _) in found.items()}
            images = {name: image[None] for name, (_, image, _) in found.items()}
            score = float(self.dlf_.fuse_images(images))
            fused = self.dlf_.fuse_pixels(maps)
        parts = {
            name: Part(
                float(image), distances.view(self._grid(name)), nearest.view(self._grid(name)),
                smoothing=Gaussian(self.sigma),
            )
            for name, (distances, image, nearest) in found.items()
        }  # fmt: skip
        return Prediction(score, fused, sample, parts)

    def _score(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """M3DM eq. 6 to 8 for the patches (P, D) of one image: patch scores, image score, nearest vectors."""
        bank, patches = self.vectors_[name], self._standardized(name, rows)
        distances, nearest = self._distances(patches, bank).min(dim=1)
        worst = int(distances.argmax())
        largest, star = distances[worst], bank[nearest[worst]]
        around = self._distances(star[None], bank)[0].topk(self.n_neighbors or 3, largest=False).indices
        gaps = (patches[worst] - bank[around[1:]]).norm(dim=1)
        scale = bank.shape[1] ** 0.5
        weight = 1 - (largest / scale).exp() / (gaps / scale).exp().sum()
        return distances, weight * largest, nearest

    def _distances(self, rows: Tensor, bank: Tensor) -> Tensor:
        if not self.in_float64:
            return torch.cdist(rows, bank, compute_mode="use_mm_for_euclid_dist_if_necessary")
        parts, own = rows.double().split(_ROWS), bank.double()
        norms = own.square().sum(1)
        squared = [torch.addmm(norms, part, own.T, alpha=-2) + part.square().sum(1)[:, None] for part in parts]
        return torch.cat([one.clamp_(min=0).sqrt_().float() for one in squared])

    def _enlarge(self, distances: Tensor, grid: tuple[int, int]) -> Tensor:
        size = (self.image_size, self.image_size)
        enlarged = F.interpolate(distances.view(1, 1, *grid), size=size, mode="bilinear")[0, 0]
        return torch.from_numpy(gaussian_filter(enlarged.numpy(), self.sigma))


if __name__ == "__main__":
    print(json.dumps(bench.score_once(sys.argv[1], sys.argv[2], PlainM3DM.of)))
