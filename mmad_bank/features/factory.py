"""Extractors by the names that methods and the command line give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.checks import check_choice
from mmad_bank._internal.former import formerly
from mmad_bank._internal.precision import ComputeDtype, NetworkDtype
from mmad_bank._internal.progress import doing
from mmad_bank._internal.state_dicts import load_state
from mmad_bank._internal.weights import REFLECTING
from mmad_bank.errors import InputError
from mmad_bank.features.efficientnet_lite import NAMES, EfficientNetLite, Padding
from mmad_bank.features.fpfh import FPFH
from mmad_bank.features.point_alignment import Interpolation, PointFeatureAlignment, measured_points_of
from mmad_bank.features.point_bert import PointBERT
from mmad_bank.features.point_mae import PointMAE
from mmad_bank.features.point_transformer import READINGS, BatchNorm, PointTransformer
from mmad_bank.features.rgb import RGBExtractor
from mmad_bank.features.runtimes import Runtime, check_int8, check_runtime

BUNDLED_RGB = "efficientnet_lite2.reflect"
"""The RGB extractor of the banks' bundled settings; its weights come from the package index."""
BUNDLED_SMALL = "efficientnet_lite0"
"""The same of methods without banks, whose trainings were set up with it."""
BUNDLED_STAGES = (1, 2, 4)
"""Its stages for banks: strides 4, 8 and 16, the middle of the network, as PatchCore advises (section 3.1)."""
PRETRAINED, RANDOM = "pretrained", "random"
_TRANSFORMERS: dict[str, tuple[type[PointTransformer], tuple[str, str]]] = {
    "point_mae": (PointMAE, ("Point-MAE", "pretrain.pth from https://github.com/Pang-Yatian/Point-MAE/releases")),
    "point_bert": (PointBERT, ("Point-BERT", "Point-BERT.pth from https://github.com/lulutang0608/Point-BERT")),
}
"""Networks of point groups by name, and the file of their weights."""
_ALIGNED = {"three_nearest": "published", "all_centers": "paper"}  # words of version 0.1, which stand in files


def in_words(name: str) -> str:
    """Put arguments and their values for the words of readings that extractors' names have.

    Args:
        name: Name of one extractor or of several, as files record it.

    Example:
        >>> in_words("point_mae 1024x128 layers 3,7,11 paper grid 56x56 aligned as published + my network")
        'point_mae 1024x128 layers 3,7,11 batch_norm=running grid 56x56 interpolation=three_nearest + my network'
    """
    for interpolation, word in _ALIGNED.items():
        name = re.sub(rf"\baligned as {word}\b", f"interpolation={interpolation}", name)
    for (batch_norm, skips), word in READINGS.items():
        plain = f"batch_norm={batch_norm}" + (" skip_near_origin=true" if skips else "")
        name = re.sub(rf"(\b\d+x\d+ layers [\d,]+) {word}(?=$| (?:grid|interpolation|groups|\+))", rf"\1 {plain}", name)
    return name


class PointPatches(nn.Module):
    """Point-MAE or Point-BERT, and PFA, in one: organized clouds to the features of patches (M3DM, section 3.2).

    Args:
        network: The extractor of tokens.
        alignment: Module that brings them to the patch grid.

    Example:
        >>> import torch
        >>> net = PointPatches(PointMAE(16, 8), PointFeatureAlignment((4, 4), (32, 32)))
        >>> net(torch.rand(1, 3, 32, 32) + 0.1).shape
        torch.Size([1, 16, 1152])
    """

    def __init__(self, network: PointTransformer, alignment: PointFeatureAlignment) -> None:
        super().__init__()
        self.network, self.alignment = network, alignment

    @property
    def dim(self) -> int:
        """Dimensions of one patch feature."""
        return self.network.dim

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patches."""
        return self.alignment.grid

    @property
    def name(self) -> str:
        """Name of the extractor, as a bank file records it."""
        aligned = _ALIGNED[self.alignment.interpolation]
        return f"{self.network.name} grid {self.grid[0]}x{self.grid[1]} aligned as {aligned}"

    def forward(self, xyz: Tensor) -> Tensor:
        """Extract patch features: (B, 3, H, W) in metres to float32 (B, h·w, D), zero where a patch has no point."""
        with torch.no_grad():
            return self.features(xyz)

    def features(self, xyz: Tensor) -> Tensor:
        """Extract as :meth:`forward` does, with gradients for weights that want them."""
        measured = measured_points_of(xyz)
        points, pixels = [one for one, _ in measured], [one for _, one in measured]
        tokens, centers = self.network.features(points)
        if not tokens.requires_grad:
            return self.alignment(tokens, centers, points, pixels)
        parts = zip(points, pixels, centers, tokens, strict=True)
        return torch.stack([self.alignment.weights(cloud, own, at) @ rows for cloud, own, at, rows in parts])

    @property
    def transformer(self) -> nn.Module:
        """The network: what a fine-tuning trains."""
        return self.network

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of the network, those that are used."""
        return list(self.network.blocks.blocks)


class FPFHPatches(nn.Module):
    """:class:`FPFH` with the interface of the networks: (B, 3, H, W) to (B, h·w, 33); it has no weights."""

    def __init__(self, descriptor: FPFH) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.dim, self.grid, self.name = descriptor.dim, descriptor.grid, descriptor.name

    def forward(self, xyz: Tensor) -> Tensor:
        """Describe organized clouds; computed on the CPU, returned where the clouds are."""
        return self.descriptor(xyz.permute(0, 2, 3, 1)).to(xyz.device)


def comes_with_a_package(model: str) -> bool:
    """Tell whether a name of an RGB extractor is that of one whose weights come from the package index.

    Example:
        >>> comes_with_a_package("efficientnet_lite2.reflect"), comes_with_a_package("tf_efficientnet_lite2.in1k")
        (True, False)
    """
    return model.removesuffix(REFLECTING) in NAMES


@formerly(precision="compute_dtype")
def make_rgb_extractor(
    model: str,
    weights: str = PRETRAINED,
    *,
    layers: Sequence[int] | None = None,
    grid: tuple[int, int] = (28, 28),
    image_size: int = 224,
    compute_dtype: NetworkDtype = "float32",
    runtime: Runtime = "torch",
    plain: bool = False,
) -> RGBExtractor | EfficientNetLite:
    """Make the extractor of colour images.

    Args:
        model: ``"efficientnet_lite0"``, ``"efficientnet_lite1"`` or ``"efficientnet_lite2"`` (weights from the package
            index), or any model's name in timm. With ``".reflect"`` behind it, as in ``"efficientnet_lite2.reflect"``,
            convolutions of the three mirror their maps at the border instead of seeing zeros beyond it.
        weights: ``"pretrained"``, ``"random"`` (for tests and timings), or a checkpoint file.
        layers: Numbers of stages or blocks; default: the extractor's own.
        grid: (h, w) of the patches.
        image_size: Pixels per side of the images.
        compute_dtype: Number type of the products; features are float32 either way. ``"int8"`` is for convolutions that
            OpenVINO runs; the extractor's ``measure_int8`` has to be shown normal images before it describes any.
        runtime: Library that runs it on a CPU: ``"torch"`` or ``"openvino"``, see :mod:`mmad_bank.features.runtimes`.
        plain: Whether maps of convolutional networks are taken as they are, without the average over 3×3 cells; for
            what else it changes of timm's networks see :class:`mmad_bank.features.RGBExtractor`.

    Raises:
        InputError: The model is unknown, its weights cannot be had, or it cannot compute in ``compute_dtype``.
        FormatError: The file is for another architecture.
        MissingExtraError: A package is not installed.

    Example:
        >>> make_rgb_extractor("efficientnet_lite0", "random").dim
        656
    """
    check_runtime(runtime)
    check_choice(compute_dtype, get_args(NetworkDtype), "compute_dtype")
    check_int8(compute_dtype, runtime)
    number_type: ComputeDtype = "float32" if compute_dtype == "int8" else compute_dtype
    made = _make_rgb(model, weights, layers, grid, image_size, number_type, plain)
    made.runtime = runtime
    if compute_dtype == "int8":
        if isinstance(made, RGBExtractor) and made.is_transformer:
            raise InputError(f"compute_dtype: expected float32 or bfloat16 for the transformer {model}, found int8")
        made.take_int8()
    return made


def _make_rgb(
    model: str,
    weights: str,
    layers: Sequence[int] | None,
    grid: tuple[int, int],
    image_size: int,
    compute_dtype: ComputeDtype,
    plain: bool,
) -> RGBExtractor | EfficientNetLite:
    if comes_with_a_package(model):
        name = model.removesuffix(REFLECTING)
        padding: Padding = "zero" if name == model else "reflect"
        options: dict[str, Any] = {} if layers is None else {"stages": tuple(layers)}
        options |= {"neighbourhood": 1} if plain else {}
        with doing(f"loading {model}"), argument_called(stages="layers"):
            network = EfficientNetLite(
                variant=NAMES.index(name), grid=grid, pretrained=weights == PRETRAINED, padding=padding,
                compute_dtype=compute_dtype, **options,
            )  # fmt: skip
        if weights not in (PRETRAINED, RANDOM):
            load_state(network, weights)
        return network
    checkpoint = None if weights in (PRETRAINED, RANDOM) else weights
    with doing(f"loading {model}"):
        return RGBExtractor(
            model, checkpoint, layers=layers, image_size=image_size, grid=grid, download=weights == PRETRAINED,
            compute_dtype=compute_dtype, plain=plain,
        )  # fmt: skip


@formerly(precision="compute_dtype")
def make_xyz_extractor(
    kind: str = "point_mae",
    weights: str = PRETRAINED,
    *,
    num_groups: int = 1024,
    group_size: int = 128,
    layers: Sequence[int] = (3, 7, 11),
    grid: tuple[int, int] = (28, 28),
    image_size: int = 224,
    batch_norm: BatchNorm = "batch",
    interpolation: Interpolation = "three_nearest",
    skip_near_origin: bool = False,
    compute_dtype: ComputeDtype = "float32",
) -> PointPatches | FPFHPatches:
    """Make the extractor of point clouds.

    Args:
        kind: ``"point_mae"``, ``"point_bert"``, or ``"fpfh"``, which needs no weights.
        weights: Weights of a network: the published checkpoint's file, or ``"random"`` (for tests and timings).
        num_groups: Number of groups that the network cuts a cloud into.
        group_size: Number of points per group.
        layers: Numbers of the network's blocks, from 0.
        grid: (h, w) of the patches.
        image_size: Pixels per side of the organized clouds.
        batch_norm: Statistics of Point-MAE's batch normalisations.
        interpolation: Rule by which PFA weighs the centres.
        skip_near_origin: Whether sampling passes over points near the origin.
        compute_dtype: Number type of Point-MAE's products.

    Raises:
        InputError: The kind is unknown, or the weights cannot be had.
        FormatError: The file is for another architecture.
    """
    if kind == "fpfh":
        with doing("loading Open3D for FPFH"):
            return FPFHPatches(FPFH(grid))
    if kind not in _TRANSFORMERS:
        raise InputError(f"xyz: expected {', '.join(_TRANSFORMERS)} or fpfh, found {kind!r}")
    make, published = _TRANSFORMERS[kind]
    if weights == PRETRAINED:
        raise InputError(
            f"xyz_weights: expected the file of {published[0]}'s published checkpoint, which no package brings"
            f" (--set xyz_weights=PATH of fit, --xyz-weights PATH of extract; {published[1]}), or 'random';"
            " xyz='fpfh' needs no weights (--bundled)"
        )
    network = make(
        num_groups, group_size, layers=layers, batch_norm=batch_norm, skip_near_origin=skip_near_origin,
        compute_dtype=compute_dtype,
    )  # fmt: skip
    if weights != RANDOM:
        network.load_checkpoint(weights)
    return PointPatches(network, PointFeatureAlignment(grid, (image_size, image_size), interpolation=interpolation))
