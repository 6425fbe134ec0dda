"""AST (Rudolph et al. 2023): a student that cannot follow its teacher, a normalizing flow, where something is new."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank import scoring
from mmad_bank._internal import sections
from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.resume import Stages
from mmad_bank._internal.state_dicts import load_state, save_state
from mmad_bank._internal.timing import timed
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.sample import Sample
from mmad_bank.extraction import Extractors
from mmad_bank.features.factory import BUNDLED_SMALL, RANDOM, make_rgb_extractor
from mmad_bank.methods.ast.depth import Depth
from mmad_bank.methods.ast.flow import CLAMP, Flow
from mmad_bank.methods.ast.position import check_channels, position_map
from mmad_bank.methods.ast.student import Student
from mmad_bank.methods.ast.training import squared_difference, train_student, train_teacher
from mmad_bank.methods.base import Method, Part, Prediction, Samples
from mmad_bank.methods.options import (
    Count,
    Idle,
    Range,
    Rate,
    RGBOptions,
    Side,
    SomeOf,
    TrainingOptions,
    accepts_former_names,
)
from mmad_bank.methods.padding import window_of
from mmad_bank.methods.preparing import with_background
from mmad_bank.methods.training_features import Dumps, extract_split

INPUTS = ("rgb", "xyz")
RESULT = "student"
"""Name of the one part of a prediction."""
STRIDE = 32
"""Pixels of a cell's side, of the stage of EfficientNet that AST takes."""
ImageScore = Literal["max", "mean"]
MapsOf = Callable[[Mapping[str, Tensor], Sequence[Frame | None]], tuple[Tensor, Tensor]]
Width = Annotated[int, Range(1, 2**13)]


@accepts_former_names
@dataclass(kw_only=True, eq=False, repr=False)
class AST(Method, TrainingOptions, RGBOptions):
    """A student learns a teacher's outputs on normal samples; an anomaly is where it gets them wrong.

    The teacher is a normalizing flow, trained on the features of normal images and on their depth beside them: it is
    one-to-one, so that unusual features have unusual outputs. The student is a plain convolutional network, which
    nothing forces to follow there. The map is the mean over channels of the squared difference of their outputs, in the
    foreground; the image's score is the map's maximum, or its mean where there is no depth.

    The defaults are the paper's, for a GPU. On a CPU a narrower student (``student_width``), smaller images and fewer
    epochs keep a training to minutes.

    Attributes:
        extractors_: Extractors that describe samples.
        teacher_: The teacher.
        student_: The student.

    Raises:
        InputError: An argument is out of its range, or is none of its choices.

    Example:
        >>> method = AST("efficientnet_lite0", image_size=224, student_width=64, teacher_epochs=20, student_epochs=20)
        >>> method.inputs
        ('rgb', 'xyz')
    """

    name: ClassVar[str] = "ast"
    preparation: ClassVar[str] = "cfm"
    prediction_arguments: ClassVar[frozenset[str]] = frozenset({"image_score", "runtime", "sigma"})
    bundled: ClassVar[Mapping[str, Any]] = {
        "rgb": BUNDLED_SMALL, "rgb_layers": (1, 2, 4), "image_size": 224, "grid": (14, 14), "coupling_blocks": 2,
        "teacher_width": 32, "teacher_epochs": 30, "student_blocks": 1, "student_width": 128, "student_epochs": 40,
        "batch": 4, "lr": 1e-3,
    }  # fmt: skip

    # The authors took the weights of lukemelas' EfficientNet-PyTorch under "efficientnet-b5". Those are TensorFlow's of
    # the training with AutoAugment; timm has them converted, by its own hand, under this name.
    rgb: str = field(default="tf_efficientnet_b5.aa_in1k", kw_only=False)
    image_size: Side = 768
    sigma: Annotated[float, Range(0, 10_000)] = 0.0

    inputs: Annotated[tuple[str, ...], SomeOf(INPUTS)] = INPUTS
    """Modalities that both networks look at: color features (rgb), depth (xyz), or both. Color alone takes no
    foreground."""

    grid: tuple[Side, Side] | None = None
    """Rows and columns of the cells that an image is described by; none takes cells of 32 pixels, the stride of the
    features. A cell has 8×8 pixels of depth."""

    foreground: bool = True
    """Whether the background, where no point is left, counts neither in the trainings nor in the map."""

    coupling_blocks: Annotated[int, Range(1, 2**8)] = 4
    """Coupling blocks of the teacher."""

    teacher_width: Width = 64
    """Channels within the coupling blocks."""

    clamp: Annotated[float, Range(above=0)] = CLAMP
    """Bound of the logarithms of the scales of a coupling."""

    position_channels: Annotated[int, Range(4, 2**10)] = 32
    """Channels of the map of positions that both networks are given, a multiple of 4."""

    teacher_epochs: Count = 72
    """Passes over the training images for the teacher."""

    student_blocks: Annotated[int, Range(0, 2**8)] = 4
    """Residual blocks of the student."""

    student_width: Width = 1024
    """Channels within the student."""

    student_epochs: Count = 72
    """Passes over the training images for the student."""

    batch: Count = 8

    lr: Rate = 2e-4

    image_score: ImageScore | None = None
    """Score of an image: the maximum of its map, or the mean. None takes what the paper does: the maximum with depth,
    and the mean of color alone."""

    def _begin(self) -> None:
        super()._begin()
        self.extractors_: Inputs
        self.teacher_: Flow
        self.student_: Student

    def _idle(self) -> Idle:
        inputs = f"inputs={','.join(self.inputs)}"
        yield "rgb" not in self.inputs, "rgb rgb_weights rgb_layers runtime", inputs
        yield "xyz" not in self.inputs, "foreground", inputs

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_channels(self.position_channels, "position_channels")

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities of a sample that the networks look at."""
        return frozenset(self.inputs)

    def suited(self, data: Samples, name: str = "dataset") -> Samples:
        """Return samples whose pictures have their background, see :meth:`Method.suited`."""
        return with_background(data, self.name, self.preparation, name) if "rgb" in self.inputs else data

    def _keep_own(self, fitted: Method) -> None:
        super()._keep_own(fitted)
        self.extractors_ = self.extractors_.by(self.runtime)

    # Features and depth.

    @property
    def _cells(self) -> tuple[int, int]:
        return self.grid or (max(1, self.image_size // STRIDE),) * 2

    def _networks(self, weights: str | None) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {}
        if "rgb" in self.inputs:
            with argument_called(layers="rgb_layers"):
                networks["rgb"] = make_rgb_extractor(
                    self.rgb, weights or self.rgb_weights, layers=self.rgb_layers, grid=self._cells,
                    image_size=self.image_size, compute_dtype=self.compute_dtype, runtime=self.runtime, plain=True,
                )  # fmt: skip
        if "xyz" in self.inputs:
            networks["xyz"] = Depth(self._cells, foreground=self.foreground)
        return networks

    def _maps(self, features: Mapping[str, Tensor], frames: Sequence[Frame | None]) -> tuple[Tensor, Tensor]:
        """Put what the extractors give, (B, P, D), on the grid: features (B, C, h, w), and the cells that count."""
        rows = torch.cat([features[name] for name in self.inputs], dim=2)
        maps = rows.transpose(1, 2).unflatten(2, self._cells).contiguous()
        if "foreground" in features:
            return maps, features["foreground"].unflatten(1, self._cells)
        counting = maps.new_zeros(len(maps), *self._cells)
        for one, frame in zip(counting, frames, strict=True):
            one[window_of(frame, self._cells)] = 1  # all of the picture, and no padding
        return maps, counting

    # Fitting.

    def _fit(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        del validation
        self.extractors_ = Inputs(self._networks(None), self.device)
        dumps, seen = extract_split(self, self.extractors_, "train", dataset, stages)
        seen.note(self)
        images = _Images(dumps, seen.frames, self._maps)
        training: dict[str, Any] = {
            "batch": self.batch, "lr": self.lr, "seed": self.seed, "device": self.device, "progress": stages.progress,
        }  # fmt: skip
        self.teacher_ = train_teacher(
            images, blocks=self.coupling_blocks, width=self.teacher_width, clamp=self.clamp,
            positions=self.position_channels, epochs=self.teacher_epochs, resume=stages.state("teacher.pt"), **training,
        )  # fmt: skip
        self.student_ = train_student(
            self.teacher_, images, blocks=self.student_blocks, width=self.student_width, epochs=self.student_epochs,
            resume=stages.state("student.pt"), **training,
        )  # fmt: skip

    # Predicting.

    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        features = self.extractors_(samples)
        with timed(sections.STUDENT):
            differences = self._differences(features, [sample.frame for sample in samples]).cpu()
        with timed(sections.DECISION):
            return [self._prediction(*both) for both in zip(samples, differences, strict=True)]

    def _differences(self, features: Mapping[str, Tensor], frames: Sequence[Frame | None]) -> Tensor:
        """Return the mean over channels of (T − S)² in the cells that count, 0 in the others, (B, h, w)."""
        maps, counting = self._maps(features, frames)
        positions = position_map(self.position_channels, self._cells).to(maps.device)
        condition = positions.expand(len(maps), -1, -1, -1)
        with torch.autocast(maps.device.type, torch.bfloat16, enabled=self.compute_dtype == "bfloat16"):
            target, _ = self.teacher_(maps, condition)
            output = self.student_(maps, condition)
        return squared_difference(target, output) * counting

    def _prediction(self, sample: Sample, scores: Tensor) -> Prediction:
        smoothing = Bicubic(self.sigma)
        whole = smoothing(scores, (self.image_size, self.image_size))
        shown = picture_of(whole, sample.frame)
        score = float(shown.max() if self._rule == "max" else shown.mean())
        part = Part(score, scores, frame=sample.frame, smoothing=smoothing)
        return Prediction(score, whole, sample, {RESULT: part})

    @property
    def _rule(self) -> ImageScore:
        return self.image_score or ("max" if "xyz" in self.inputs else "mean")

    @property
    def nbytes(self) -> int:
        """Bytes that inference holds: the weights of extractors, teacher and student."""
        networks = [*self.extractors_.networks.values(), self.teacher_, self.student_]
        return sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())

    # Saving.

    def _save(self, folder: Path) -> dict[str, Any]:
        self.extractors_.save(folder)
        save_state(self.teacher_, folder / "teacher.safetensors")
        save_state(self.student_, folder / "student.safetensors")
        return {}

    def _load(self, folder: Path, learnt: dict[str, Any]) -> None:
        del learnt
        self.extractors_ = Inputs(self._networks(RANDOM), self.device)
        self.extractors_.load(folder)
        channels, positions = sum(self.extractors_.dims.values()), self.position_channels
        self.teacher_ = Flow(
            channels, positions, blocks=self.coupling_blocks, width=self.teacher_width, clamp=self.clamp
        )
        self.student_ = Student(channels, positions, blocks=self.student_blocks, width=self.student_width)
        networks: dict[str, nn.Module] = {"teacher": self.teacher_, "student": self.student_}
        for name, network in networks.items():
            load_state(network, folder / f"{name}.safetensors")
            network.to(self.device).eval().requires_grad_(False)
        if not self.teacher_.one_to_one:
            raise ValueError("teacher.safetensors: expected each channel once in a block's permutation")


@dataclass(frozen=True)
class Bicubic:
    """Scores of cells are enlarged bicubically, and blurred where ``sigma`` says so.

    Attributes:
        sigma: Standard deviation of the Gaussian in pixels; 0 leaves the blur out.

    Example:
        >>> Bicubic()(torch.ones(2, 2), (2, 4))
        tensor([[1., 1., 1., 1.],
                [1., 1., 1., 1.]])
    """

    sigma: float = 0.0

    def __call__(self, scores: Tensor, size: tuple[int, int], /) -> Tensor:
        """Bring scores (h, w) to a map (H, W)."""
        whole = F.interpolate(scores[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]
        return scoring.anomaly_map(whole.reshape(1, -1), size, size, self.sigma)[0] if self.sigma else whole


class Inputs(Extractors):
    """AST's extractors: the depth comes with the share of the foreground in each cell, (B, P)."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is extracted."""
        return (*self.networks, "foreground") if "xyz" in self.networks else tuple(self.networks)

    def _describe(self, modality: str, network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        if not isinstance(network, Depth):
            return super()._describe(modality, network, batch)
        depth, foreground = network.maps(batch)
        return {modality: depth.flatten(2).transpose(1, 2).contiguous(), "foreground": foreground.flatten(1)}


class _Images:
    """The training images' features, read from their files one image at a time."""

    def __init__(self, dumps: Dumps, frames: Sequence[Frame | None], maps: MapsOf) -> None:
        self.dumps, self.frames, self.maps = dumps, frames, maps

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        rows = {name: torch.from_numpy(np.array(table[index]))[None] for name, table in self.dumps.items()}
        maps, counting = self.maps(rows, [self.frames[index]])
        return maps[0], counting[0]


__all__ = ["AST", "Bicubic", "Inputs"]
