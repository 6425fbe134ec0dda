"""The arguments that several methods have, each declared once.

A method is a dataclass that inherits the groups it needs, keyword-only but for the RGB network and its weights; its
own arguments stand in its class. A method that names an argument of a group again changes its default. What the
declarations say is checked by the constructor, and read by ``--set`` and by :func:`mmad_bank.methods.parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from mmad_bank import scoring
from mmad_bank._internal.limits import MACHINE, Count, DeviceName, Range, Rate, SomeOf
from mmad_bank._internal.parameters import accepting_former_names
from mmad_bank._internal.precision import ComputeDtype
from mmad_bank.adaptation import Layer
from mmad_bank.features.factory import PRETRAINED
from mmad_bank.features.point_alignment import Interpolation
from mmad_bank.features.point_transformer import BatchNorm
from mmad_bank.features.runtimes import Runtime
from mmad_bank.methods.readings import POINTS, Presets, Recipe
from mmad_bank.ops.knn import Precision as BankPrecision

FORMER_NAMES = {"precision": "compute_dtype", "storage": "bank_precision", "normalise_for": "normalize_for"}
"""Names of today by names of version 0.1: of constructors' arguments, in saved models, and in ``--set``."""

accepts_former_names = accepting_former_names(FORMER_NAMES)
"""Class decorator: the constructor takes the former names of its arguments too, with a DeprecationWarning."""

Side = Annotated[int, Range(1, 2**14)]
"""Pixels, or patches, along a side."""
Layers = tuple[Annotated[int, Range(0, MACHINE)], ...]
"""Stages or blocks of a network, counted from 0."""

CalibratedOn = Literal["auto", "validation", "folds", "none"]
"""What verdicts are calibrated on."""

VERDICT_ARGUMENTS = frozenset({"false_alarm_rate", "bank_precision", "runtime"})
"""Arguments of prediction on which no score depends, but for rounding."""

Idle = Iterator[tuple[bool, str, str]]
"""What a group's method ``_idle`` yields: whether arguments have no effect, their names joined by spaces, and the
arguments that are why. :meth:`MethodOptions.idle_arguments` asks every group of a method."""

__all__ = [
    "FORMER_NAMES", "VERDICT_ARGUMENTS", "AdaptationOptions", "AlignmentOptions", "BankGridOptions", "BankOptions",
    "BankPrecision", "CalibratedOn", "ComputeDtype", "Count", "GridOptions", "Idle", "Layers", "MethodOptions",
    "PointOptions", "RGBOptions", "Range", "Rate", "Runtime", "SelectionOptions", "Side", "SomeOf", "TrainingOptions",
    "accepts_former_names",
]  # fmt: skip


@dataclass(kw_only=True, eq=False, repr=False)
class MethodOptions:
    """Arguments of all methods."""

    image_size: Side = 224
    """Side of the prepared images, in pixels."""

    sigma: Annotated[float, Range(0, 10_000)] = 4.0
    """Standard deviation of the Gaussian that smooths the anomaly map, in pixels; 0 leaves the map as it is."""

    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] = 0
    """Seed of everything random: projections, initial weights, the order of a training's images."""

    calibration: CalibratedOn = "auto"
    """Normal images that verdicts are calibrated on: those of the validation split; the training images, each scored by
    banks, or a whole model, made without it (folds); or none. Auto takes the validation split where it can promise a
    false-alarm rate of 5 % (19 images), else folds of the methods whose parts are all banks, else a validation split
    that can promise 10 % (9 images)."""

    calibration_folds: Annotated[int, Range(2, 1000)] = 10
    """Number of folds that the training images are cut into for the calibration: so many times banks, or
    a whole model, are made of the others."""

    views: str | None = None
    """Pattern of the pictures' names, with {part} and {view}, where several pictures show one part, such as
    {part}_{view}: verdicts are of parts then, see :class:`mmad_bank.data.ViewPattern`. None judges each picture by
    itself."""

    false_alarm_rate: Annotated[float, Range(above=0, below=1, such_as="0.01 for 1%")] | None = None
    """Share of the normal images (with ``views``, of the normal parts) that a verdict may call bad; none takes 0.01, or
    the smallest rate that the held-out ones can promise."""

    device: Annotated[str, DeviceName()] = "cpu"
    """Device that extracts, trains and searches; FPFH is computed on the CPU all the same."""

    def _idle(self) -> Idle:
        calibration = f"calibration={self.calibration}"
        yield self.calibration not in ("auto", "folds"), "calibration_folds", calibration
        yield self.calibration == "none", "false_alarm_rate", calibration

    def idle_arguments(self) -> dict[str, str]:
        """Name the arguments that nothing looks at, with the values that others have.

        Returns:
            The others that are why, by the idle argument's name.

        Example:
            >>> from mmad_bank.methods import CFM
            >>> CFM(xyz="fpfh").idle_arguments()["batch_norm"]
            'xyz=fpfh'
        """
        rules = (vars(kind)["_idle"](self) for kind in reversed(type(self).__mro__) if "_idle" in vars(kind))
        return {name: why for own in rules for idle, names, why in own if idle for name in names.split()}


@dataclass(kw_only=True, eq=False, repr=False)
class RGBOptions:
    """Arguments of methods that describe color images."""

    rgb: str = field(default="wide_resnet50_2.tv_in1k", kw_only=False)
    """Network that describes color images: a model's name in timm, or ``"efficientnet_lite0"`` to
    ``"efficientnet_lite2"``, whose weights come with a package (with ``".reflect"`` behind it, maps are mirrored at the
    border)."""

    rgb_weights: str = field(default=PRETRAINED, kw_only=False)
    """Weights of that network: ``"pretrained"``, a checkpoint file, or ``"random"`` for tests and timings."""

    rgb_layers: Layers | None = None
    """Stages or blocks that features are taken from, counted from 0; none takes the network's own default."""

    compute_dtype: ComputeDtype = "float32"
    """Number type of the networks' matrix products in prediction; what comes out of them is float32 either way."""

    runtime: Runtime = "torch"
    """Library that runs the network of color images on a CPU: torch, or openvino, which takes about half of the time
    (extra ``openvino``). Scores are the same but for rounding."""

    def _idle(self) -> Idle:
        device = str(getattr(self, "device", "cpu"))
        yield device != "cpu", "runtime", f"device={device}"


@dataclass(kw_only=True, eq=False, repr=False)
class GridOptions:
    """Arguments of methods whose features lie on a grid of patches."""

    grid: tuple[Side, Side] = (28, 28)
    """Rows and columns of the grid of patches that an image is described by."""


@dataclass(kw_only=True, eq=False, repr=False)
class BankGridOptions:
    """Arguments of methods whose banks have grids of their own."""

    grid: tuple[Side, Side] | None = None
    """Rows and columns of the grid of patches of all banks; none leaves it to the arguments of each bank."""

    rgb_grid: tuple[Side, Side] | None = None
    """Rows and columns of the RGB bank's grid; none takes the recipe's."""

    xyz_grid: tuple[Side, Side] | None = None
    """Rows and columns of the point bank's grid; none takes the recipe's."""

    fusion_grid: tuple[Side, Side] | None = None
    """Rows and columns of the fusion bank's grid; both modalities' features are brought to it. None takes the
    recipe's."""


@dataclass(kw_only=True, eq=False, repr=False)
class PointOptions(RGBOptions):
    """Arguments of methods that describe color images and point clouds."""

    xyz: Literal["point_mae", "point_bert", "fpfh"] = "point_mae"
    """Descriptor of point clouds: the network Point-MAE, or Point-BERT, with which M3DM compares it, or fast point
    feature histograms, which need no weights."""

    xyz_weights: str = PRETRAINED
    """Weights of that network: the file of its published checkpoint, or ``"random"`` for tests and timings."""

    num_groups: Annotated[int, Range(1, 2**20)] = 1024
    """Number of groups that the network cuts a cloud into (G)."""

    group_size: Annotated[int, Range(1, 2**20)] | None = None
    """Number of points in a group (S); none takes the recipe's: 128, or 32 of CFM as its paper says."""

    recipe: Recipe = "default"
    """Reading where a paper and its authors' code differ: default does what the published figures rest on, published
    does the accidents of the code too, and paper takes the sentences literally. It is a preset: each difference is an
    argument of its own, whose value none takes the recipe's."""

    batch_norm: BatchNorm | None = None
    """Mean and variance that the point network's batch normalisations use: those of the cloud's own groups (batch), or
    the checkpoint's (running); none takes the recipe's."""

    skip_near_origin: bool | None = None
    """Whether the point network's sampling passes over points with ‖p‖² up to 0.001, as the published kernel does; none
    takes the recipe's."""

    readings: ClassVar[Presets] = POINTS
    """Values of the readings by recipe."""

    def _idle(self) -> Idle:
        names = "xyz_weights num_groups group_size batch_norm skip_near_origin"
        yield self.xyz == "fpfh", names, "xyz=fpfh"

    def reading(self, name: str) -> Any:
        """Return the value of a reading: the argument's own, or the recipe's where that is None.

        Args:
            name: Name of the argument, such as ``"batch_norm"``.

        Example:
            >>> from mmad_bank.methods import CFM
            >>> CFM(recipe="paper").reading("group_size"), CFM(group_size=64).reading("group_size")
            (32, 64)
        """
        value = getattr(self, name)
        return self.readings[self.recipe][name] if value is None else value


@dataclass(kw_only=True, eq=False, repr=False)
class AlignmentOptions(PointOptions):
    """Arguments of methods that align the features of point groups to patches."""

    interpolation: Interpolation | None = None
    """Centers that a point's features come from: the three nearest, weighed by 1/d², or all, weighed by 1/d (M3DM,
    eq. 1); none takes the recipe's."""

    def _idle(self) -> Idle:
        yield self.xyz == "fpfh", "interpolation", "xyz=fpfh"


@dataclass(kw_only=True, eq=False, repr=False)
class AdaptationOptions(AlignmentOptions):
    """Arguments of methods that may adapt the features of both modalities, as LSFA does."""

    adaptation: str = "none"
    """Adaptation of the features before all else: ``"none"``; ``"train"`` on the samples of ``fit``; or a file of one
    pair of adaptors that was trained before (:class:`mmad_bank.adaptation.FeatureAdaptation` saves it)."""

    adaptor: Layer = "vanilla"
    """Kind of the adaptors: the paper's encoder layer (``"vanilla"``), the others of its table 7, or ``"residual"``,
    which starts as the identity, for little data and for features that do not come out of a layer norm (see
    :class:`mmad_bank.adaptation.Adaptor`)."""

    adaptation_steps: Count = 1000
    """Optimizer steps of the adaptors' training; the paper gives no number."""

    adaptation_batch: Count = 8
    """Images in a step of the adaptors' training."""

    adaptation_patches: Count | None = None
    """Patches drawn from an image for the local losses of that training; none takes all."""

    def _idle(self) -> Idle:
        names = "adaptor adaptation_steps adaptation_batch adaptation_patches"
        yield self.adaptation != "train", names, f"adaptation={self.adaptation}"


@dataclass(kw_only=True, eq=False, repr=False)
class TrainingOptions:
    """Arguments of methods whose networks all learn in batches of one size, at one rate."""

    batch: Count = 4
    """Images in a step of the training, at most all of them."""

    lr: Rate = 1e-3
    """Learning rate of the training."""


@dataclass(kw_only=True, eq=False, repr=False)
class SelectionOptions:
    """Arguments of methods that select memory banks of what they describe."""

    ratio: Annotated[float, Range(above=0, most=1, such_as="0.1 for 10%")] = 0.1
    """Share of the training patches that a bank keeps."""

    projection_dim: Count | Literal["auto"] | None = None
    """Dimensions of the sparse random projection in which patches are selected; none selects on the features
    themselves, which is exact."""

    bank_precision: BankPrecision = "auto"
    """Number type of the banks' resident copies that are searched; scores do not depend on it (see
    :class:`mmad_bank.MemoryBank`)."""


@dataclass(kw_only=True, eq=False, repr=False)
class BankOptions(SelectionOptions):
    """Arguments of methods with memory banks whose patch scores are distances to the nearest vectors."""

    reweight: scoring.Reweight = "m3dm"
    """Rule of the image score: the worst patch's score, reweighted by how crowded the bank is (m3dm, patchcore) or as
    it is (max), or the mean of the top 1 % of the patch scores (top); see :func:`mmad_bank.scoring.image_score`."""

    n_neighbors: Count | None = None
    """Neighbors that the reweighting looks at; none takes the rule's own number."""

    def _idle(self) -> Idle:
        yield self.reweight in scoring.UNWEIGHTED, "n_neighbors", f"reweight={self.reweight}"
