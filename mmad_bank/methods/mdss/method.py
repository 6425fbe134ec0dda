"""MDSS (Sun et al. 2024): a student-teacher network on RGB and signed distances on points, without memory banks.

One class, a third of it the arguments with their words; its networks and trainings lie in the modules beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmad_bank._internal import sections
from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.resume import Stages
from mmad_bank._internal.state_dicts import load_state, save_state
from mmad_bank._internal.timing import timed
from mmad_bank._internal.training import seeded
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.sample import Sample
from mmad_bank.errors import NoneUsableError
from mmad_bank.extraction import usable
from mmad_bank.features.factory import BUNDLED_SMALL, make_rgb_extractor
from mmad_bank.features.point_alignment import measured_points
from mmad_bank.methods.base import Part, Prediction, Samples
from mmad_bank.methods.mdss.pdn import CHANNELS, PDN, foreground_mask, mask_on_grid, squared_difference
from mmad_bank.methods.mdss.photographs import teacher_images
from mmad_bank.methods.mdss.point_patches import cut_patches
from mmad_bank.methods.mdss.score_alignment import Moments, ScoreAlignment
from mmad_bank.methods.mdss.signed_distance import SignedDistance
from mmad_bank.methods.mdss.student_teacher import Images, train_student, train_teacher
from mmad_bank.methods.mdss.training_data import TrainingData, counted
from mmad_bank.methods.options import Count, Idle, Range, Rate, RGBOptions, SomeOf, accepts_former_names
from mmad_bank.methods.prediction import Gaussian
from mmad_bank.methods.shareable import TRAIN, CategoryData, load_part
from mmad_bank.methods.signed_distance_method import SDF, SignedDistanceMethod

BRANCHES, DISTIL = ("rgb", "xyz"), "distil"
Statistics = Literal["all", "nonzero"]
Quantile = Annotated[float, Range(0, below=1)]


@accepts_former_names
@dataclass(kw_only=True, eq=False, repr=False)
class MDSS(SignedDistanceMethod, RGBOptions):
    """Differences of a student from its teacher, and of points from the surface that their surroundings should have.

    RGB: a PDN student learns its teacher's outputs on the foreground of normal images (section 3.1). Points: patches of
    the cloud are encoded, and an implicit function says how far each point lies from the normal surface (3.2). The two
    maps are aligned by their statistics on the validation split (without one, on the training samples); the map is the
    larger one at every pixel, the image's score the product of the two maps' maxima (3.3).

    The student never learns the background, so its differences there say nothing: they are set to zero in prediction
    as in training. The paper gives no numbers of steps, and the defaults here are for a GPU; on a CPU, narrower
    networks (``pdn_width``, ``sdf_width``), smaller images and fewer steps keep a training to minutes. ``sigma`` blurs
    the 3-D map; the RGB map is not blurred.

    Attributes:
        teacher_: The teacher, if there is an RGB branch.
        student_: The student, likewise.
        sdf_: The signed distances, if there is a 3-D branch.
        alignment_: Alignment of the two branches.

    Raises:
        InputError: An argument is out of its range, or is none of its choices.

    Example:
        >>> method = MDSS(pdn_width=16, teacher_steps=200, student_steps=200, sdf_width=64, sdf_steps=300)
        >>> method.branches
        ('rgb', 'xyz')
    """

    name: ClassVar[str] = "mdss"
    prediction_arguments: ClassVar[frozenset[str]] = frozenset({"decision"})
    bundled: ClassVar[Mapping[str, Any]] = {
        # PDN sees 33 pixels, so that it can learn the extractor's early stages only.
        "rgb": BUNDLED_SMALL, "rgb_layers": (1, 2), "channels": 64, "pdn_width": 8, "teacher_steps": 300,
        "teacher_batch": 4, "teacher_lr": 2e-3, "student_steps": 400, "coverage": (5.0, 5.0), "sdf_steps": 1200,
        "sdf_batch": 12,
        # After so short a training a single patch's distance is noisy: their mean tells more than the smallest.
        "sdf_queries": 60, "sdf_lr": 1e-3, "sdf_width": 96, "aggregation": "mean",
    }  # fmt: skip
    preparation: ClassVar[str] = "mdss"

    rgb: str = field(default=BUNDLED_SMALL, kw_only=False)
    image_size: int = 256

    branches: Annotated[tuple[str, ...], SomeOf(BRANCHES)] = BRANCHES
    """Branches to train; one alone gives its own map, and the map's maximum as the score."""

    teacher: str = DISTIL
    """Teacher of the student: ``"distil"`` of the RGB network, or a file of published PDN weights, which needs no such
    network."""

    teacher_images: str | None = None
    """Pictures to distil the teacher on: a folder of them, or ``"own"``, those of the training samples. None takes
    eleven photographs that come with scikit-image and scikit-learn, and the training samples where one of those is not
    installed, as a warning says then. EfficientAD's teacher has learnt ImageNet."""

    teacher_steps: Count = 10_000
    """Optimizer steps of the distillation (EfficientAD takes 60 000)."""

    teacher_batch: Count = 16
    """Images in a step of the distillation."""

    teacher_lr: Rate = 1e-4
    """Learning rate of the distillation."""

    pdn_width: Annotated[int, Range(1, 2**12)] = 128
    """Channels after the first convolution of PDN; 128 for the published weights."""

    channels: Annotated[int, Range(1, 2**15)] | None = None
    """Channels of PDN's map; none takes 384, or as many as the RGB network has dimensions."""

    student_steps: Count = 10_000
    """Optimizer steps of the student's training (EfficientAD takes 70 000)."""

    student_batch: Count = 4
    """Images in a step of the student's training."""

    student_lr: Rate = 1e-3
    """Learning rate of the student's training."""

    quantiles: tuple[Quantile, Quantile] = (0.99, 0.999)
    """Quantiles of the loss in the first and in the last step (the dynamic learning factor d, see
    :func:`mmad_bank.methods.mdss.pdn.dynamic_quantile`)."""

    decision: Literal["align", "calibrated"] = "align"
    """Decision over both branches: the paper's alignment of the maps, whose scores are multiplied, or the branches'
    scores on the scale of held-out normal images (see ``calibration`` and
    :class:`mmad_bank.fusion.CalibratedFusion`)."""

    statistics: Statistics = "all"
    """Pixels that the alignment's statistics are of: all, or those that are not zero, as Shape-guided's code does."""

    def _begin(self) -> None:
        super()._begin()
        self.teacher_: PDN | None = None
        self.student_: PDN | None = None
        self.alignment_: ScoreAlignment | None = None

    def _idle(self) -> Idle:
        distilling = "teacher_images teacher_steps teacher_batch teacher_lr"
        yield self.teacher != DISTIL, f"rgb rgb_weights rgb_layers runtime {distilling}", f"teacher={self.teacher}"
        branches = f"branches={','.join(self.branches)}"
        student = "student_steps student_batch student_lr quantiles teacher pdn_width channels"
        yield "rgb" not in self.branches, f"rgb rgb_weights rgb_layers {distilling} {student}", branches
        training = "sdf_steps sdf_batch sdf_queries sdf_lr"
        points = f"{training} sdf_weights sdf_width patch_size coverage aggregation sigma"
        yield "xyz" not in self.branches, points, branches
        yield len(self.branches) < len(BRANCHES), "statistics decision", branches
        yield self.decision == "calibrated", "statistics", "decision=calibrated"

    def _parts_of_decision(self) -> tuple[str, ...]:
        return self.branches if len(self.branches) > 1 else ()

    # Fitting.

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities of a sample that the branches look at; without a cloud every pixel is foreground."""
        return frozenset(self.branches)

    @property
    def needs_validation(self) -> bool:
        """Whether two branches are aligned, by their scores of validation samples."""
        return len(self.branches) == len(BRANCHES)

    def _fit(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        own = self.training_data(dataset, stages)
        data: TrainingData = own.data
        if "rgb" in self.branches:
            self.teacher_ = self._make_teacher(data, stages)
            self.student_ = train_student(
                self.teacher_, data.images, data.masks, steps=self.student_steps, batch=self.student_batch,
                lr=self.student_lr, quantiles=self.quantiles, seed=self.seed, resume=stages.state("student.pt"),
                device=self.device, progress=stages.progress,
            )  # fmt: skip
        self.learn_parts([own], stages)
        if len(self.branches) == len(BRANCHES):
            held_out = validation if validation is not None and len(validation) else dataset
            self.alignment_ = self._align(held_out, stages)

    def training_data(self, dataset: Samples, stages: Stages) -> CategoryData:
        """Prepare images and cut patches, see :meth:`Method.training_data`."""
        trains_sdf = "xyz" in self.branches and self.sdf_weights == TRAIN
        cut = partial(cut_patches, size=self.patch_size, coverage=self._coverage(0)) if trains_sdf else None
        data = TrainingData(dataset, self.prepare_for_training, cut, self.image_size, stages)
        data.seen.note(self)
        return CategoryData("", data, stages, len(data.seen.ids))

    def _has(self, part: str) -> bool:
        return part != SDF.name or "xyz" in self.branches

    def distil(self, images: Images, *, resume: str | os.PathLike[str] | None = None, progress: bool = False) -> PDN:
        """Distil a teacher with the arguments of this method; saved, one teacher serves all categories.

        Args:
            images: Any images, see :func:`mmad_bank.methods.mdss.student_teacher.train_teacher`.
            resume: File of the training's state.
            progress: Show a bar on a terminal.

        Returns:
            The teacher. A file of its ``state_dict()`` (safetensors or torch) is what the argument ``teacher`` takes.

        Raises:
            InputError: An argument is out of range, or an image does not fit.

        Example:
            >>> method = MDSS(rgb_weights="random", image_size=64, pdn_width=4, teacher_steps=1, teacher_batch=1)
            >>> method.distil(torch.rand(2, 3, 64, 64)).width
            4
        """
        with seeded(self.seed), argument_called(layers="rgb_layers"):  # seeded for random weights
            extractor = make_rgb_extractor(
                self.rgb, self.rgb_weights, layers=self.rgb_layers, grid=PDN.grid(self.image_size),
                image_size=self.image_size, compute_dtype=self.compute_dtype, runtime=self.runtime,
            ).to(self.device)  # fmt: skip
        return train_teacher(
            extractor, images, channels=self.channels, width=self.pdn_width, steps=self.teacher_steps,
            batch=self.teacher_batch, lr=self.teacher_lr, seed=self.seed, resume=resume, device=self.device,
            progress=progress,
        )  # fmt: skip

    def _make_teacher(self, data: TrainingData, stages: Stages) -> PDN:
        if self.teacher != DISTIL:
            network = load_part(PDN(self.channels or CHANNELS, width=self.pdn_width), "teacher", self.teacher)
            return network.requires_grad_(False).to(self.device)
        images = teacher_images(self.teacher_images, data.images, self.image_size)
        return self.distil(images, resume=stages.state("teacher.pt"), progress=stages.progress)

    def _align(self, samples: Samples, stages: Stages) -> ScoreAlignment:
        """Measure both branches' maps of normal samples (section 3.3)."""

        def write(path: Path) -> None:
            moments = {name: Moments() for name in BRANCHES}
            prepared = usable(samples, self.prepare_for_training, unusable, normal=True)
            for sample in counted("aligning the branches' maps", prepared, len(samples), stages.progress):
                for name, part in self._parts([sample])[0].items():
                    scores = picture_of(self._map(part), sample.frame)
                    moments[name].update(scores if self.statistics == "all" else scores[scores != 0])
            if len(unusable) == len(samples):
                raise NoneUsableError("validation: no sample can be used", unusable)
            path.write_text(json.dumps(asdict(ScoreAlignment.of(moments["rgb"], moments["xyz"]))))

        unusable: dict[str, str] = {}
        alignment = ScoreAlignment(**json.loads(stages.run("alignment.json", write).read_text()))
        self.skipped_ |= unusable
        return alignment

    # Predicting.

    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        predictions = []
        for sample, parts in zip(samples, self._parts(samples), strict=True):
            with timed(sections.ALIGNMENT):
                maps = {name: self._map(part) for name, part in parts.items()}
                if self.alignment_ is None:
                    ((name, whole),) = maps.items()
                    score = parts[name].score
                else:
                    whole = self.alignment_.union(maps["rgb"], maps["xyz"])
                    score = parts["rgb"].score * parts["xyz"].score
            predictions.append(Prediction(score, whole, sample, parts))
        return predictions

    @torch.no_grad()
    def _parts(self, samples: list[Sample]) -> list[dict[str, Part]]:
        """Score samples by each branch."""
        scores: dict[str, list[Tensor]] = {}
        if self.student_ is not None:
            with timed(sections.STUDENT):
                scores["rgb"] = self._differences(samples)
        if self.sdf_ is not None:
            with timed(sections.DISTANCES):
                scores["xyz"] = [self._distances(sample) for sample in samples]
        return [
            {name: self._part(name, branch[b], sample.frame) for name, branch in scores.items()}
            for b, sample in enumerate(samples)
        ]

    def _differences(self, samples: list[Sample]) -> list[Tensor]:
        """Return the mean over channels of (T - S)² on the foreground, (h, w) a sample."""
        assert self.teacher_ is not None
        assert self.student_ is not None
        images = torch.stack([sample.rgb for sample in samples]).to(self.device)
        images = images.contiguous(memory_format=torch.channels_last)  # convolutions are faster so, bfloat16 four times
        mask = mask_on_grid(foreground_mask(torch.stack([sample.xyz for sample in samples])), PDN.grid(self.image_size))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.compute_dtype == "bfloat16"):
            difference = squared_difference(self.teacher_, self.student_, images, mask)
        return list(difference.mean(1).cpu() * mask)

    def _distances(self, sample: Sample) -> Tensor:
        """Return |signed distance| of every measured pixel, zero elsewhere, (H, W)."""
        assert self.sdf_ is not None
        name = str(sample.xyz_path or sample.id or "sample")
        points, pixels = measured_points(sample.xyz.permute(1, 2, 0), name)
        scores = torch.zeros(sample.size[0] * sample.size[1])
        scores[pixels] = self.sdf_.score(
            points, size=self.patch_size, coverage=self._coverage(1), aggregation=self.aggregation,
            compute_dtype=self.compute_dtype,
        )  # fmt: skip
        return scores.view(sample.size)

    def _part(self, name: str, scores: Tensor, frame: Frame | None) -> Part:
        """Make a part of a branch's scores: only the 3-D ones are blurred."""
        part = Part(0.0, scores, frame=frame, smoothing=Gaussian(self.sigma if name == "xyz" else 0.0))
        return replace(part, score=float(picture_of(self._map(part), frame).max()))

    def _map(self, part: Part) -> Tensor:
        return part.map((self.image_size, self.image_size))

    @property
    def nbytes(self) -> int:
        """Bytes that inference holds: the weights."""
        return sum(tensor.nbytes for network in self._networks().values() for tensor in network.state_dict().values())

    # Saving.

    def _networks(self) -> dict[str, nn.Module]:
        networks = {"teacher": self.teacher_, "student": self.student_, "signed-distance": self.sdf_}
        return {name: network for name, network in networks.items() if network is not None}

    def _save(self, folder: Path) -> dict[str, Any]:
        for name, network in self._networks().items():
            save_state(network, folder / f"{name}.safetensors")
        channels = None if self.student_ is None else self.student_.channels
        return {"channels": channels, "alignment": None if self.alignment_ is None else asdict(self.alignment_)}

    def _load(self, folder: Path, learnt: dict[str, Any]) -> None:
        if "rgb" in self.branches:
            self.teacher_, self.student_ = (PDN(learnt["channels"], width=self.pdn_width) for _ in range(2))
        if "xyz" in self.branches:
            self.sdf_ = SignedDistance(self.sdf_width)
        for name, network in self._networks().items():
            load_state(network, folder / f"{name}.safetensors")
            network.to(self.device).eval().requires_grad_(False)
        if len(self.branches) == len(BRANCHES):
            self.alignment_ = ScoreAlignment.saved(learnt["alignment"])
