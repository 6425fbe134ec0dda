"""CFM (Costanzino et al. 2024): features mapped from one modality to the other, and compared with what is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank._internal import sections
from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.resume import Stages
from mmad_bank._internal.state_dicts import load_state, save_state
from mmad_bank._internal.timing import timed
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.names import category_of
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import categories_of_samples, named
from mmad_bank.errors import InputError
from mmad_bank.extraction import Extractors
from mmad_bank.features.factory import (
    BUNDLED_SMALL,
    BUNDLED_STAGES,
    RANDOM,
    PointPatches,
    comes_with_a_package,
    make_rgb_extractor,
    make_xyz_extractor,
)
from mmad_bank.features.point_alignment import measured_points_of, nearest_groups
from mmad_bank.features.point_transformer import DEPTH, PointTransformer
from mmad_bank.methods.base import Method, Part, Prediction, Samples
from mmad_bank.methods.cfm.box_filters import BoxFilters
from mmad_bank.methods.cfm.comparison import discrepancies
from mmad_bank.methods.cfm.mappings import (
    MODALITIES,
    Architecture,
    CrossmodalMapping,
    Mode,
    make_mappings,
    source_of,
)
from mmad_bank.methods.cfm.pixel_features import PixelFeatures
from mmad_bank.methods.cfm.training import train_mappings
from mmad_bank.methods.options import (
    Count,
    GridOptions,
    Idle,
    PointOptions,
    Range,
    Side,
    TrainingOptions,
    accepts_former_names,
)
from mmad_bank.methods.prediction import Gaussian, Smoothing
from mmad_bank.methods.preparing import with_background
from mmad_bank.methods.readings import POINTS, Presets, presets, warn_of_other_reading
from mmad_bank.methods.shareable import TRAIN, load_part
from mmad_bank.methods.training_features import Dumps, extract_split

Variant = Literal["L", "M", "S", "T"]
Aggregation = Literal["product", "sum", "max", "rgb", "xyz"]
Normalization = Literal["aupro", "p_auroc"]

RGB_LAYERS: dict[str, tuple[int, ...]] = {"L": (11,), "M": (7,), "S": (3,), "T": (0,)}
"""Transformer blocks of ViT-B whose tokens a variant takes, counted from 0."""
XYZ_LAYERS: dict[str, tuple[int, ...]] = {"L": (3, 7, 11), "M": (1, 4, 7), "S": (1, 2, 3), "T": (0,)}
"""The same of Point-MAE."""
RGB_STAGES: dict[str, tuple[int, ...]] = {"L": BUNDLED_STAGES, "M": (1, 2, 3), "S": (1, 2), "T": (1,)}
"""Stages of the bundled extractor, which is no transformer."""

_FINISH: Presets = {
    "default": {"smoothing": "gaussian", "divide_by_means": False},
    "published": {"smoothing": "boxes", "divide_by_means": True},
    "paper": {"smoothing": "gaussian", "divide_by_means": False, "group_size": 32},
}


@accepts_former_names
@dataclass(kw_only=True, eq=False, repr=False)
class CFM(Method, TrainingOptions, GridOptions, PointOptions):
    """Two small networks predict each modality's features from the other's; an anomaly is where both are wrong.

    Features of every pixel (section 3.1), mappings (3.2), the product of the two discrepancies, smoothed, and its
    maximum as the image's score (3.3), and transformers that end early (3.4).

    By default Point-MAE takes the statistics of the cloud's own groups of 128 points, as the authors' code does. The
    recipe ``"published"`` does that code's accidents too: box filters in place of the Gaussian, and maps and scores
    divided by means of the map. ``"paper"`` takes the paper's sentences literally: groups of 32 points and the
    checkpoint's statistics. Each difference is an argument of its own.

    Attributes:
        extractors_: Extractors that describe samples.
        mappings_: The mappings, by the modality that they predict.

    Raises:
        InputError: An argument is out of its range, or is none of its choices.

    Example:
        >>> method = CFM("efficientnet_lite0", xyz="fpfh", epochs=20, pixels_per_image=1024)
        >>> method.aggregation
        'product'
    """

    name: ClassVar[str] = "cfm"
    preparation: ClassVar[str] = "cfm"
    prediction_arguments: ClassVar[frozenset[str]] = frozenset(
        {"aggregation", "decision", "normalize_for", "runtime", "sigma"}
    )
    bundled: ClassVar[Mapping[str, Any]] = {"rgb": BUNDLED_SMALL, "epochs": 50, "pixels_per_image": 1024}

    rgb: str = field(default="vit_base_patch8_224.dino", kw_only=False)

    xyz_layers: tuple[Annotated[int, Range(0, DEPTH - 1)], ...] | None = None
    """Blocks of Point-MAE that features are taken from, counted from 0; none takes the variant's."""

    variant: Variant = "L"
    """Depth of the transformers: M, S and T end both after block 8, 4 and 1, and what comes behind is neither made nor
    loaded nor run."""

    architecture: Architecture = "projection"
    """Architecture of the mappings (see :class:`mmad_bank.methods.cfm.CrossmodalMapping`)."""

    mode: Mode = "crossmodal"
    """Source that a modality is predicted from: the other one, or itself, which is an ablation."""

    aggregation: Aggregation = "product"
    """Aggregation of both modalities' discrepancies; one alone is rgb (Ψ_2D) or xyz (Ψ_3D)."""

    decision: Literal["aggregate", "calibrated"] = "aggregate"
    """Decision over both modalities: the aggregation, or the modalities' scores on the scale of held-out normal images
    (see ``calibration`` and :class:`mmad_bank.fusion.CalibratedFusion`)."""

    rgb_to_xyz_weights: str = TRAIN
    """Weights of the mapping M_2D→3D: ``"train"`` on the samples of ``fit``, the file of a published state dict, or
    ``"random"`` for tests and timings."""

    xyz_to_rgb_weights: str = TRAIN
    """Weights of the mapping M_3D→2D, likewise; both or neither are trained, random, or files."""

    epochs: Count = 250
    """Passes over the training images; the paper takes 250, and 50 in ablations."""

    pixels_per_image: Count | None = None
    """Pixels drawn from an image in training; none takes all, as the paper."""

    map_size: Side | None = None
    """Side of the maps that are compared, in pixels; none takes ``image_size``. A smaller one is faster by the square,
    and its map is enlarged."""

    smoothing: Literal["gaussian", "boxes"] | None = None
    """Filter of the map: a Gaussian of ``sigma``, or the published code's box filters; none takes the recipe's."""

    divide_by_means: bool | None = None
    """Whether map and score are divided by means of the map, as in the published code; none takes the recipe's."""

    readings: ClassVar[Presets] = presets(POINTS, _FINISH)

    normalize_for: Normalization = "aupro"
    """Metric that a map is divided by means for: aupro by the mean of its non-zero pixels, p_auroc by the square root
    of the mean of all; the image's score is divided by the square root of the first."""

    def _begin(self) -> None:
        super()._begin()
        self.extractors_: MapExtractors
        self.mappings_: dict[str, CrossmodalMapping]

    def _idle(self) -> Idle:
        yield self.xyz == "fpfh", "xyz_layers", "xyz=fpfh"
        training = "epochs batch pixels_per_image lr"
        yield self.rgb_to_xyz_weights != TRAIN, training, f"rgb_to_xyz_weights={self.rgb_to_xyz_weights}"
        yield self.reading("smoothing") == "boxes", "sigma", "smoothing=boxes"
        yield not self.reading("divide_by_means"), "normalize_for", "divide_by_means=false"
        yield self.decision == "calibrated", "aggregation normalize_for divide_by_means", "decision=calibrated"

    def _parts_of_decision(self) -> tuple[str, ...]:
        return MODALITIES

    def _check_arguments(self) -> None:
        super()._check_arguments()
        given = {self.rgb_to_xyz_weights, self.xyz_to_rgb_weights}
        if len(given) == 2 and given & {TRAIN, RANDOM}:
            words = "two files, or 'train' or 'random' for both"
            raise InputError(f"rgb_to_xyz_weights and xyz_to_rgb_weights: expected {words}")

    def suited(self, data: Samples, name: str = "dataset") -> Samples:
        """Return samples whose pictures have their background, see :meth:`Method.suited`."""
        if self.train_ids_ and self.preprocessing_ is not None and self.preprocessing_.zero_rgb:
            return data  # an older version fitted it on such pictures
        return with_background(data, self.name, self.preparation, name)

    def _keep_own(self, fitted: Method) -> None:
        super()._keep_own(fitted)
        self.extractors_ = self.extractors_.by(self.runtime)

    # Sections 3.1 and 3.4: features, of transformers that end early.

    def _networks(self, weights: str | None) -> dict[str, nn.Module]:
        layers = self.rgb_layers or (RGB_STAGES if comes_with_a_package(self.rgb) else RGB_LAYERS)[self.variant]
        with argument_called(layers="rgb_layers"):
            rgb = make_rgb_extractor(
                self.rgb, weights or self.rgb_weights, layers=layers, grid=self.grid, image_size=self.image_size,
                compute_dtype=self.compute_dtype, runtime=self.runtime,
            )  # fmt: skip
        size = self._map_size
        with argument_called(layers="xyz_layers"):
            xyz = make_xyz_extractor(
                self.xyz, weights or self.xyz_weights, num_groups=self.num_groups,
                group_size=self.reading("group_size"), batch_norm=self.reading("batch_norm"),
                layers=self.xyz_layers or XYZ_LAYERS[self.variant], grid=(size, size), image_size=self.image_size,
                skip_near_origin=self.reading("skip_near_origin"), compute_dtype=self.compute_dtype,
            )  # fmt: skip
        return {"rgb": rgb, "xyz": xyz.network if isinstance(xyz, PointPatches) else xyz}

    @property
    def _map_size(self) -> int:
        return self.map_size or self.image_size

    def _pixels(self, features: Mapping[str, Tensor]) -> PixelFeatures:
        """Put an image's features, of the extractors or of their files, together."""
        groups, weights = features.get("groups"), features.get("weights")
        return PixelFeatures(
            features["rgb"], features["xyz"], self.grid, self._map_size,
            None if groups is None else groups.long(), weights,
        )  # fmt: skip

    # Section 3.2: the mappings.

    def _fit(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        del validation
        self.extractors_ = MapExtractors(self._networks(None), self.device)
        if self.rgb_to_xyz_weights != TRAIN:
            self.train_ids_ = [name for name, _ in named(dataset)]
            known = {category_of(name) for name in self.train_ids_} | categories_of_samples(dataset)
            self.categories_ = sorted(known - {""})
            self.mappings_ = self._new_mappings()
            if self.rgb_to_xyz_weights != RANDOM:
                features = " + ".join(self.extractors_.names.values())
                load_part(self.mappings_["xyz"], "rgb_to_xyz_weights", self.rgb_to_xyz_weights, features)
                load_part(self.mappings_["rgb"], "xyz_to_rgb_weights", self.xyz_to_rgb_weights, features)
                warn_of_other_reading(self, "rgb_to_xyz_weights", self.rgb_to_xyz_weights)
            return
        dumps, seen = extract_split(self, self.extractors_, "train", dataset, stages)
        seen.note(self)
        self.mappings_ = train_mappings(
            _Images(dumps, self.device, self._pixels), epochs=self.epochs, batch=self.batch,
            pixels_per_image=self.pixels_per_image,
            lr=self.lr, architecture=self.architecture, mode=self.mode, seed=self.seed,
            resume=stages.state("mappings.pt"), device=self.device, progress=stages.progress,
        )  # fmt: skip

    def _new_mappings(self) -> dict[str, CrossmodalMapping]:
        mappings = make_mappings(self.extractors_.dims, architecture=self.architecture, mode=self.mode)
        return {name: mapping.to(self.device).eval() for name, mapping in mappings.items()}

    # Section 3.3: aggregation.

    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        features = self.extractors_(samples)
        predictions = []
        for b, sample in enumerate(samples):
            with timed(sections.MAPPINGS):
                image = self._pixels({name: rows[b] for name, rows in features.items()})
                apart = discrepancies(self.mappings_, image, self.mode, compute_dtype=self.compute_dtype)
            with timed(sections.DECISION):
                smooth = self._smooth(aggregate(apart, self.aggregation))
                score, own = self._finish(smooth, sample.frame)
                parts = {name: self._part(maps, sample.frame) for name, maps in apart.items()}
            predictions.append(Prediction(score, own.cpu(), sample, parts))
        return predictions

    def _part(self, discrepancy: Tensor, frame: Frame | None) -> Part:
        score = float(picture_of(self._smooth(discrepancy), frame).max())
        own = discrepancy.view(self._map_size, self._map_size).cpu()
        return Part(score, own, frame=frame, smoothing=self._smoothing)

    @property
    def _smoothing(self) -> Smoothing:
        return Gaussian(self.sigma) if self.reading("smoothing") == "gaussian" else BoxFilters()

    def _smooth(self, discrepancy: Tensor) -> Tensor:
        """Enlarge and smooth a map (map_size²,) to (image_size, image_size)."""
        own = discrepancy.view(self._map_size, self._map_size)
        return self._smoothing(own, (self.image_size, self.image_size))

    def _finish(self, smooth: Tensor, frame: Frame | None) -> tuple[float, Tensor]:
        """Return the score of the image, in which padding has no say, and the map."""
        largest = picture_of(smooth, frame).max()
        if not self.reading("divide_by_means"):
            return float(largest), smooth
        positive = smooth[smooth != 0]
        mean = positive.mean() if len(positive) else smooth.new_ones(())
        divisor = mean if self.normalize_for == "aupro" else smooth.mean().sqrt()
        return float(largest / mean.sqrt()), smooth / divisor.clamp(min=torch.finfo(smooth.dtype).tiny)

    @property
    def nbytes(self) -> int:
        """Bytes that inference holds: the weights of extractors and mappings."""
        networks = [*self.extractors_.networks.values(), *self.mappings_.values()]
        return sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())

    # Saving.

    def _save(self, folder: Path) -> dict[str, Any]:
        self.extractors_.save(folder)
        for name, mapping in self.mappings_.items():
            save_state(mapping, folder / self._file_of(name))
        return {}

    def _load(self, folder: Path, learnt: dict[str, Any]) -> None:
        del learnt
        self.extractors_ = MapExtractors(self._networks(RANDOM), self.device)
        self.extractors_.load(folder)
        self.mappings_ = self._new_mappings()
        for name, mapping in self.mappings_.items():
            load_state(mapping, folder / self._file_of(name))

    def _file_of(self, predicted: str) -> str:
        return f"{source_of(predicted, self.mode)}_to_{predicted}.safetensors"


def aggregate(discrepancy: Mapping[str, Tensor], aggregation: Aggregation = "product") -> Tensor:
    """Put the discrepancies of both modalities together, pixel by pixel (CFM, section 3.3 and table 6).

    Example:
        >>> aggregate({"rgb": torch.tensor([0.5, 1.0]), "xyz": torch.tensor([0.5, 0.0])})
        tensor([0.2500, 0.0000])
    """
    rgb, xyz = (discrepancy[name] for name in MODALITIES)
    if aggregation == "product":
        return rgb * xyz
    if aggregation == "sum":
        return rgb + xyz
    if aggregation == "max":
        return torch.maximum(rgb, xyz)
    return discrepancy[aggregation]


class MapExtractors(Extractors):
    """CFM's extractors. A point network's tokens come with each pixel's groups and their weights, (B, H, W, k) each."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is extracted."""
        grouped = isinstance(self.networks["xyz"], PointTransformer)
        return ("rgb", "xyz", "groups", "weights") if grouped else ("rgb", "xyz")

    def _describe(self, modality: str, network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        if not isinstance(network, PointTransformer):
            return super()._describe(modality, network, batch)
        measured = measured_points_of(batch)
        tokens, centers = network([points for points, _ in measured])
        shape = (len(batch), batch.shape[2] * batch.shape[3], min(3, network.num_groups))
        groups, weights = torch.zeros(shape, device=batch.device), torch.zeros(shape, device=batch.device)
        for b, (points, pixels) in enumerate(measured):
            nearest, weights[b, pixels] = nearest_groups(points, centers[b])
            groups[b, pixels] = nearest.float()  # numbers below 2²⁴: exact
        size = (batch.shape[2], batch.shape[3])
        return {"xyz": tokens, "groups": groups.unflatten(1, size), "weights": weights.unflatten(1, size)}


class _Images:
    """The training images' features, read from their files one image at a time."""

    def __init__(
        self, dumps: Dumps, device: torch.device | str, pixels: Callable[[Mapping[str, Tensor]], PixelFeatures]
    ) -> None:
        self.dumps, self.device, self.pixels = dumps, device, pixels

    def __len__(self) -> int:
        return len(self.dumps["rgb"])

    def __getitem__(self, index: int, /) -> PixelFeatures:
        rows = {name: torch.from_numpy(np.array(table[index])) for name, table in self.dumps.items()}
        return self.pixels({name: tensor.to(self.device) for name, tensor in rows.items()})


__all__ = ["CFM", "CrossmodalMapping", "MapExtractors", "aggregate"]
