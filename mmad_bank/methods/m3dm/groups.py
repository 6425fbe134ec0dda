"""A bank of point groups in place of patches (M3DM, section 4.4 and the first rows of table 5).

A group of points is a patch: the bank holds the network's tokens, not what PFA makes of them. Scores of groups are
interpolated to the pixels of the image by inverse distance, around the pixels of the groups' centers. Pixels without a
point stay 0, as with PFA: the paper says "every pixel", but with background as anomalous as the nearest group its AUPRO
would be near 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank._internal.resume import Stages
from mmad_bank.bank import Scores
from mmad_bank.bank.provenance import Origin
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.sample import Sample
from mmad_bank.errors import InputError
from mmad_bank.extraction import Extractors
from mmad_bank.features.factory import PointPatches
from mmad_bank.features.point_alignment import Interpolation, measured_points_of
from mmad_bank.methods.m3dm.options import M3DMOptions
from mmad_bank.methods.map_scale import distances_to_others, spread
from mmad_bank.methods.point_bank_method import PointBankMethod
from mmad_bank.methods.prediction import Reason
from mmad_bank.methods.training_features import Dumps
from mmad_bank.methods.verdicts import FUSED
from mmad_bank.ops import interpolate_features, knn_group

BANK, PLACES, MEASURED = "xyz", "places", "measured"


class GroupExtractors(Extractors):
    """The tokens of point groups, with what their scores are brought to the pixels by.

    Tokens are (B, G, D); row and column of the pixels of the groups' centers (B, G, 2); and whether there is a point in
    a pixel (B, H·W), 1 or 0. All are float32.
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is extracted."""
        return (BANK, PLACES, MEASURED)

    def _describe(self, modality: str, network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, PointPatches)
        measured = measured_points_of(batch)
        tokens, centers = network.network([points for points, _ in measured])
        places, present = [], torch.zeros(len(batch), batch.shape[2] * batch.shape[3], device=batch.device)
        for (points, pixels), own, one in zip(measured, centers, present, strict=True):
            one[pixels] = 1.0
            pixel = pixels[knn_group(points, own, 1)[:, 0]]  # a center is one of the points
            places.append(torch.stack([pixel // batch.shape[3], pixel % batch.shape[3]], dim=1))
        return {BANK: tokens, PLACES: torch.stack(places).float(), MEASURED: present}


def to_pixels(groups: Tensor, places: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    """Interpolate what groups have to all pixels of an image.

    Args:
        groups: (G, D) float32, a row of each group.
        places: (G, 2) float32, row and column of the pixel of its center.
        size: Pixels per side.
        interpolation: ``"all_centers"`` weighs all groups by 1 / (d + 1e-8), ``"three_nearest"`` the three nearest by
            1 / (d² + 1e-8); d in pixels.

    Returns:
        (size², D) float32, row by row.

    Example:
        >>> to_pixels(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]]), 3, "all_centers")[:3, 0]
        tensor([1., 2., 3.])
    """
    flat = places.new_zeros(len(places), 1)
    centers = torch.cat([places, flat], dim=1)
    k, power = (len(places), 1) if interpolation == "all_centers" else (min(3, len(places)), 2)
    return interpolate_features(_pixels(size, places.device), centers, groups, k=k, power=power)


def nearest_group(places: Tensor, size: int) -> Tensor:
    """Return the number of the group whose center is nearest to each pixel, (size²,) int64."""
    centers = torch.cat([places, places.new_zeros(len(places), 1)], dim=1)
    return knn_group(centers, _pixels(size, places.device), 1)[:, 0]


def _pixels(size: int, device: torch.device) -> Tensor:
    along = torch.arange(size, dtype=torch.float32, device=device)
    row, column = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([row, column, torch.zeros_like(row)], dim=2).flatten(0, 1)


@dataclass(kw_only=True, eq=False, repr=False)
class GroupSampling(PointBankMethod, M3DMOptions):
    """What M3DM does otherwise with ``sampling="groups"``."""

    @property
    def _by_groups(self) -> bool:
        return self.sampling == "groups"

    @property
    def takes_roi(self) -> bool:
        """Whether it can leave out what lies outside a region of interest: groups lie anywhere."""
        return not self._by_groups

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not self._by_groups:
            return
        for name, wanted in (("banks", (BANK,)), ("adaptation", "none")):
            found = getattr(self, name)
            if found != wanted:
                raise InputError(f"{name}: expected {wanted!r} with sampling 'groups', found {found!r}")
        if self.xyz == "fpfh":
            raise InputError("xyz: expected point_mae or point_bert with sampling 'groups', found 'fpfh'")

    def _extraction_facts(self) -> dict[str, Any]:
        return {**super()._extraction_facts(), **({"sampling": self.sampling} if self._by_groups else {})}

    def _make_extractors(self, networks: dict[str, nn.Module]) -> Extractors:
        return GroupExtractors(networks, self.device) if self._by_groups else super()._make_extractors(networks)

    def _extractor_name(self, bank: str) -> str:
        if not self._by_groups:
            return super()._extractor_name(bank)
        network = self.extractors_.networks[BANK]
        assert isinstance(network, PointPatches)
        return f"{network.network.name} groups"

    def _composed(self, split: str, dumps: Dumps, stages: Stages) -> Dumps:
        return dumps if self._by_groups else super()._composed(split, dumps, stages)

    def _score_patches(self, patches: Mapping[str, Tensor], frames: Sequence[Frame | None]) -> dict[str, Scores]:
        if not self._by_groups:
            return super()._score_patches(patches, frames)
        scores = self._score_rows(BANK, patches[BANK])
        images = list(zip(scores.patch, scores.nearest, patches[PLACES], patches[MEASURED], strict=True))
        patch = torch.stack([self._spread(own, places, measured) for own, _, places, measured in images])
        nearest = torch.stack([own[nearest_group(places, self.image_size)] for _, own, places, _ in images])
        return {BANK: Scores(patch, scores.image, nearest)}

    def _spread(self, scores: Tensor, places: Tensor, measured: Tensor) -> Tensor:
        """Bring scores of groups (G,) to the pixels of an image (S²,); padding has no groups."""
        rule: Interpolation = self.reading("interpolation")
        return to_pixels(scores[:, None], places, self.image_size, rule)[:, 0] * measured

    def _maps_of_others(self, dumps: Dumps) -> Iterator[dict[str, Tensor]]:
        if not self._by_groups:
            yield from super()._maps_of_others(dumps)
            return
        for image in spread(len(self.train_ids_)):
            names = (BANK, PLACES, MEASURED)
            tokens, places, measured = (torch.from_numpy(np.array(dumps[name][image])) for name in names)
            distances = distances_to_others(self.banks_[BANK], tokens, self._equal_to(image))
            if distances is None:  # there is one image only
                return
            pixels = self._spread(distances.cpu(), places, measured)
            yield {FUSED: picture_of(self._map_of(BANK, pixels[None])[0], self._seen["train"].frames[image])}

    def _query(self, sample: Sample, bank: str, place: tuple[int, int]) -> Tensor:
        if not self._by_groups:
            return super()._query(sample, bank, place)
        features = self._patches_of(sample)
        group = nearest_group(features[PLACES][0], self.image_size)[place[0] * self.image_size + place[1]]
        return features[BANK][0, group][None]

    def _reason(self, origin: Origin, distance: float, grid: tuple[int, int]) -> Reason:
        """Name the training picture; a model does not keep where its groups lay."""
        if not self._by_groups or origin.image is None:
            return super()._reason(origin, distance, grid)
        return Reason(self.train_ids_[int(origin.image)], None, distance)
