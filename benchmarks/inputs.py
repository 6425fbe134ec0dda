"""Features that the benchmarks work on: real photographs through a real network, with nothing to download.

The network is the bundled EfficientNet-Lite0 with its ImageNet weights. Six of its stages give 768 dimensions (24 + 40
+ 80 + 112 + 192 + 320), the length of ViT-B features; without the one of 112 channels they are the 656 dimensions that
:func:`mmad_bank.synthetic.textures.texture_features` gives.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import mmad_bank as mb
from mmad_bank._internal.files import cache_dir, replacing
from mmad_bank.synthetic import textures

STAGES_768 = (1, 2, 3, 4, 5, 6)
COLUMNS_656 = np.r_[0:144, 256:768]  # all but stage 4
BAGEL_IMAGES, BAGEL_GRID, BAGEL_DIM = 244, (56, 56), 1152
_CACHE_VERSION = 1


@functools.cache
def _extractor(grid: tuple[int, int]) -> mb.features.EfficientNetLite0:
    return mb.features.EfficientNetLite0(STAGES_768, grid=grid)


def extract_768(images: np.ndarray, grid: tuple[int, int] = (28, 28)) -> np.ndarray:
    """Extract features of images (B, H, W, 3) uint8: (B · h · w, 768) float32."""
    extractor = _extractor(grid)
    batches = [
        extractor(torch.from_numpy(images[i : i + 16]).permute(0, 3, 1, 2)).numpy() for i in range(0, len(images), 16)
    ]
    return np.concatenate(batches).reshape(-1, extractor.dim)


@dataclass
class SearchSet:
    """A bank and the queries of one image without and of one with defects."""

    bank: np.ndarray
    queries: dict[str, np.ndarray]
    origin: str

    def columns(self, chosen: np.ndarray) -> SearchSet:
        """Return the set in a part of its dimensions."""
        bank = np.ascontiguousarray(self.bank[:, chosen])
        queries = {name: np.ascontiguousarray(rows[:, chosen]) for name, rows in self.queries.items()}
        return SearchSet(bank, queries, self.origin)


def search_set(n_images: int, n_bank: int, n_queries: int = 784) -> SearchSet:
    """Return a bank of 768 dimensions, the coreset of ``n_images`` training images, and patches of unseen images."""
    path = cache_dir() / f"benchmark-bank-v{_CACHE_VERSION}-gravel-n{n_images}-m{n_bank}.npy"
    try:
        bank = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        bank = _coreset(n_images, n_bank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            np.save(partial, bank)
    good = textures.texture_images(1, split="test")[0]
    donor = textures.texture_images(1, texture="brick", split="test")[0]
    defect = textures.draw_scratch(textures.paste_patch(good, donor)[0])[0]
    queries = {name: extract_768(image[None])[:n_queries] for name, image in (("good", good), ("defect", defect))}
    return SearchSet(bank, queries, f"greedy coreset of {n_images} images ({n_images * 784} patches)")


def _coreset(n_images: int, n_bank: int) -> np.ndarray:
    """Select in the 656 dimensions, keep the 768: one bank of either length."""
    features = extract_768(textures.texture_images(n_images))
    rows = mb.ops.k_center_greedy(np.ascontiguousarray(features[:, COLUMNS_656]), n_bank)
    return features[rows.numpy()]


def widening(dim_in: int, dim_out: int, seed: int = 0) -> np.ndarray:
    """Return a random matrix (dim_in, dim_out) with orthonormal rows: it keeps all distances."""
    normal = np.random.default_rng(seed).standard_normal((dim_out, dim_in))
    return np.linalg.qr(normal)[0].T.astype(np.float32)


def wide_blocks(n_images: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield features of 1152 dimensions on a 56×56 grid, 8 images at a time: (images · 3136, 1152) float32.

    Real 768-dimensional features, as interpolated to the finer grid as M3DM's are, turned into 1152 dimensions by a
    fixed orthonormal map, which keeps their distances, plus Gaussian noise of 1 % of their standard deviation, so that
    they fill the space.
    """
    matrix = widening(768, BAGEL_DIM, seed)
    images = textures.texture_images(n_images, seed=seed)
    scale = None
    for first in range(0, n_images, 8):
        rows = extract_768(images[first : first + 8], BAGEL_GRID) @ matrix
        scale = rows.std() if scale is None else scale
        noise = np.random.default_rng([seed, first]).standard_normal(rows.shape, dtype=np.float32)
        noise *= 0.01 * scale
        yield rows + noise


def write_wide_dump(path: Path, n_images: int, seed: int = 0) -> None:
    """Write :func:`wide_blocks` to a .npy file, one block at a time; the file appears when it is whole."""
    shape = (n_images * BAGEL_GRID[0] * BAGEL_GRID[1], BAGEL_DIM)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with replacing(path) as partial, partial.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in wide_blocks(n_images, seed):
            block.tofile(file)
