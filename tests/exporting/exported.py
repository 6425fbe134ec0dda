"""A program that scores by an export's folder alone: NumPy, ONNX Runtime, and memory banks.

What a program has to do itself, sampling groups or patches of points and aligning tokens, is mmad-bank's own here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank import MemoryBank, ops
from mmad_bank.data import RegionOfInterest, Sample
from mmad_bank.exporting.writing import run
from mmad_bank.features import FPFH
from mmad_bank.features.point_alignment import PointFeatureAlignment, measured_points
from mmad_bank.methods.mdss.pdn import foreground_mask, mask_on_grid
from mmad_bank.methods.mdss.point_patches import cut_patches

Maps = dict[str, np.ndarray]
ALL = slice(None)


def quantized(sample: Sample) -> Sample:
    """A sample whose colors are levels of 8 bits, as a picture's are."""
    return replace(sample, rgb=(sample.rgb * 255).round() / 255)


class Exported:
    """An export: features of samples, scores of the parts, and the decision."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, Any] = json.loads((folder / "export.json").read_text())

    def run(self, network: str, **inputs: np.ndarray) -> np.ndarray:
        """Return the one output of a network."""
        (found,) = run(self.folder / self.said["networks"][network]["file"], inputs).values()
        return found

    def features(self, sample: Sample) -> Maps:
        """Return features (P, D) by modality."""
        found = {}
        for name in self.said["modalities"]:
            found[name] = self._of_picture(sample) if name == "rgb" else self._of_cloud(sample)
        return found

    def _of_picture(self, sample: Sample) -> np.ndarray:
        image = (sample.rgb * 255).round().to(torch.uint8).numpy()
        return self.run("rgb", images=image[None])[0]

    def _groups_of(self, sample: Sample) -> tuple[np.ndarray, Tensor, Tensor]:
        """Return the tokens (1, G, D) of a cloud's groups, the pixels of their centers, and those of all points."""
        about = self.said["modalities"]["xyz"]
        points, pixels = measured_points(sample.xyz.permute(1, 2, 0))
        picks = ops.farthest_point_sample(points[None], about["groups"]["number"])[0]
        centers = points[picks]
        members = ops.knn_group(points, centers, about["groups"]["points"])
        groups = points[members] - centers[:, None]
        tokens = self.run(about["network"], groups=groups.numpy(), centers=centers[None].numpy())
        return tokens, pixels[picks], pixels

    def _of_cloud(self, sample: Sample) -> np.ndarray:
        about, size = self.said["modalities"]["xyz"], tuple(sample.xyz.shape[1:])
        cloud = sample.xyz.permute(1, 2, 0)
        if about["network"] is None:
            return FPFH(tuple(about["grid"]))(cloud[None])[0].numpy()
        tokens, at, _ = self._groups_of(sample)
        points, pixels = measured_points(cloud)
        centers = cloud.reshape(-1, 3)[at]
        align = PointFeatureAlignment(tuple(about["grid"]), size, interpolation=about["interpolation"])
        aligned = align(torch.from_numpy(tokens), centers[None], [points], [pixels]).numpy()
        return (self.run(about["adaptor"], patches=aligned) if about["adaptor"] else aligned)[0]

    def bank_scores(self, sample: Sample) -> tuple[dict[str, float], Maps]:
        """Return image scores and patch scores (h, w) by bank."""
        images, places = {}, {}
        for name, bank in self.said["banks"].items():
            if bank["features"][0]["rows"] == "groups":
                tokens, centers, pixels = self._groups_of(sample)
                images[name], own = self._scored(bank, tokens[0])
                places[name] = self._to_pixels(own, centers, pixels, bank["grid"])
                continue
            features = self.features(sample)
            rows = np.concatenate([self._rows(part, features, bank["grid"]) for part in bank["features"]], axis=1)
            counts = self.counting(sample, bank["grid"])
            images[name], own = self._scored(bank, rows[counts.ravel()])
            places[name] = repeated(own, counts)
        return images, places

    def _scored(self, bank: dict[str, Any], rows: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the image score of rows (P, D), and their own."""
        scores = MemoryBank.load(self.folder / bank["file"]).score(
            torch.from_numpy(rows[None]), reweight=bank["reweight"], n_neighbors=bank["n_neighbors"],
            divisor=bank["divisor"],
        )  # fmt: skip
        return float(scores.image[0]), scores.patch[0].numpy()

    def counting(self, sample: Sample, grid: list[int]) -> np.ndarray:
        """Return which cells (h, w) of a grid count: those that show the picture, within the region of interest."""
        cells = np.ones(grid, bool)
        if sample.frame is None:
            return cells
        if self.said["roi"] is not None:
            return RegionOfInterest.from_json(self.said["roi"]).cells(sample.frame, (grid[0], grid[1])).numpy()
        cells[:] = False
        cells[sample.frame.cells((grid[0], grid[1]))] = True
        return cells

    def _to_pixels(self, scores: np.ndarray, centers: Tensor, pixels: Tensor, grid: list[int]) -> np.ndarray:
        """Bring scores of groups (G,) to the pixels (h, w): by the pixels of their centers, 0 without a point."""
        there = np.argwhere(np.ones(grid)).astype(float)
        squared = ((there[:, None] - there[centers.numpy()]) ** 2).sum(-1)
        weights = 1 / (np.sqrt(squared) + 1e-8)
        if self.said["modalities"]["xyz"]["interpolation"] == "three_nearest":
            order = np.argsort(squared, axis=1, kind="stable").argsort(axis=1)
            weights = (order < 3) / (squared + 1e-8)
        found = np.zeros(len(there))
        found[pixels.numpy()] = ((weights @ scores) / weights.sum(1))[pixels.numpy()]
        return found.reshape(grid)

    def _rows(self, part: dict[str, Any], features: Maps, grid: list[int]) -> np.ndarray:
        rows = to_grid(features[part["modality"]], self.said["modalities"][part["modality"]]["grid"], grid)
        return rows if part["network"] is None else self.run(part["network"], rows=rows)

    def discrepancies(self, features: Maps) -> Maps:
        """Return CFM's maps (size, size) of what the mappings do not predict."""
        about = self.said["comparison"]
        size, grid = about["size"], self.said["modalities"]["rgb"]["grid"]
        rows, columns = (enlarging(n, size) for n in grid)
        tokens = features["rgb"].reshape(*grid, -1)
        seen = {"rgb": np.einsum("ih,jw,hwd->ijd", rows, columns, tokens).reshape(size * size, -1)}
        seen = {"rgb": seen["rgb"].astype(np.float32), "xyz": features["xyz"]}
        there = (seen["xyz"] != 0).any(axis=1)
        maps = {}
        for name, rule in about["predicted"].items():
            predicted = self.run(rule["network"], source=seen[rule["from"]])
            apart = np.linalg.norm(unit(seen[name]) - unit(predicted), axis=1)
            maps[name] = np.where(there, apart, 0).reshape(size, size)
        return maps

    def branches(self, sample: Sample) -> Maps:
        """Return the scores (h, w) of MDSS's branches."""
        scores = {}
        for name, about in self.said["modalities"].items():
            scores[name] = self._differences(sample, about) if name == "rgb" else self._distances(sample, about)
        return scores

    def _differences(self, sample: Sample, about: dict[str, Any]) -> np.ndarray:
        image = (sample.rgb * 255).round().to(torch.uint8).numpy()
        found = self.run(about["network"], images=image[None])[0]
        there = foreground_mask(sample.xyz[None], about["foreground"])
        return found * mask_on_grid(there, tuple(about["grid"]))[0].numpy()

    def _distances(self, sample: Sample, about: dict[str, Any]) -> np.ndarray:
        points, pixels = measured_points(sample.xyz.permute(1, 2, 0))
        cut = cut_patches(points, size=about["patches"]["points"], coverage=about["patches"]["coverage"])
        found = self.run(about["network"], patches=cut.points.numpy())[:, : cut.count].ravel()
        rows = cut.rows[:, : cut.count].numpy().ravel()
        assert about["aggregation"] == "min"
        own = np.full(len(points), np.inf)
        np.minimum.at(own, rows, found)
        scores = np.zeros(sample.xyz[0].numel())
        scores[pixels.numpy()] = own
        return scores.reshape(about["grid"])


def decide(
    decision: dict[str, Any], images: dict[str, float], places: Maps, shown: tuple[slice, slice] = (ALL, ALL)
) -> tuple[float, np.ndarray]:
    """Return image score and map of the prepared square by export.json's ``decision``.

    Args:
        decision: That object.
        images: Image scores of the banks; none where part scores are those of maps.
        places: Scores (h, w) of patches or pixels by part.
        shown: Rows and columns of the square that show the picture.
    """
    about, parts = decision["map"], decision["parts"]

    def map_of(scores: np.ndarray, part: str = "") -> np.ndarray:
        how = about["smoothing"]["parts"][part] if about["smoothing"]["kind"] == "by_part" else about["smoothing"]
        rows, columns = (smoothing(how, n, side) for n, side in zip(scores.shape, about["size"], strict=True))
        return rows @ scores @ columns.T

    if about["rule"] == "weighted_sum":
        whole = sum(about["weights"][name] * map_of(places[name], name) for name in parts)
    elif about["rule"] == "max_of_maps":
        whole = np.max(
            [about["scales"][name] * map_of(places[name], name) + about["offsets"][name] for name in parts], axis=0
        )
    else:
        join = np.prod if about["rule"] == "product" else np.max
        whole = map_of(join([places[name] for name in parts], axis=0))
    rule = decision["image"]
    if decision["part_scores"] == "map":
        images = {name: float(map_of(places[name], name)[shown].max()) for name in parts}
    if rule["rule"] == "weighted_sum":
        score = sum(rule["weights"][name] * images[name] for name in parts)
    elif rule["rule"] == "power_mean":
        ratios = np.array([max(images[name] / rule["units"][name], 0) for name in parts])
        score = (ratios ** rule["power"]).mean() ** (1 / rule["power"])
    elif rule["rule"] == "product":
        score = float(np.prod([images[name] for name in parts]))
    else:
        assert rule["rule"] == "largest"
        score = whole[shown].max() / divisor(rule["divided_by"], whole)
    return float(score), whole / divisor(about.get("divided_by"), whole)


def divisor(name: str | None, whole: np.ndarray) -> float:
    """Return the number that a map or its largest score is divided by."""
    if name is None:
        return 1.0
    positive = whole[whole != 0].mean()
    return float({
        "mean_of_positive": positive, "root_of_mean_of_positive": positive**0.5, "root_of_mean": whole.mean() ** 0.5,
    }[name])  # fmt: skip


def smoothing(how: dict[str, Any], n: int, side: int) -> np.ndarray:
    """Return the matrix (side, n) of enlarging and smoothing along a side."""
    matrix = enlarging(n, side)
    if how["kind"] == "boxes":
        apart = np.abs(np.arange(side)[:, None] - np.arange(side))
        for box in how["boxes"]:
            for _ in range(box["times"]):
                matrix = (apart <= box["width"] // 2) / box["width"] @ matrix
        return matrix
    radius = int(4 * how["sigma"] + 0.5)
    if radius == 0:
        return matrix
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / how["sigma"]) ** 2)
    blurred = np.zeros_like(matrix)
    for offset, weight in zip(offsets, kernel / kernel.sum(), strict=True):
        taps = (np.arange(side) + offset) % (2 * side)
        blurred += weight * matrix[np.minimum(taps, 2 * side - 1 - taps)]
    return blurred


def enlarging(n: int, side: int) -> np.ndarray:
    """Return the matrix (side, n) of bilinear enlarging, pixels' centers at halves."""
    center = ((np.arange(side) + 0.5) * n / side - 0.5).clip(0, n - 1)
    return np.maximum(0, 1 - np.abs(center[:, None] - np.arange(n)))


def repeated(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Bring scores (V,) of the cells that count to all cells (h, w): the others take that of the nearest of them."""
    there, inside = np.argwhere(np.ones_like(counts)), np.argwhere(counts)
    nearest = ((there[:, None] - inside) ** 2).sum(-1).argmin(1)
    return scores[nearest].reshape(counts.shape)


def to_grid(rows: np.ndarray, grid: list[int], wanted: list[int]) -> np.ndarray:
    """Bring features (P, D) to another grid: of each cell the mean of the patches that it touches."""
    sides = []
    for n, m in zip(grid, wanted, strict=True):
        side = np.zeros((m, n))
        for i in range(m):
            side[i, i * n // m : -(-(i + 1) * n // m)] = 1
        sides.append(side / side.sum(1, keepdims=True))
    means = np.einsum("ih,jw,hwd->ijd", *sides, rows.reshape(*grid, -1))
    return means.reshape(wanted[0] * wanted[1], -1).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
