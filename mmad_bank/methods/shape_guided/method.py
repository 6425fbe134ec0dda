"""Shape-guided (Chu et al. 2023): codes of signed distances in one bank lead to the RGB features of another.

One class, a third of it the arguments with their words; its banks and its mathematics lie in the modules beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal import sections
from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.resume import Stages
from mmad_bank._internal.state_dicts import load_state, save_state
from mmad_bank._internal.timing import timed
from mmad_bank._internal.torch_state import plain_torch
from mmad_bank.bank import MemoryBank, MultiBank
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.sample import Sample
from mmad_bank.extraction import Extractors
from mmad_bank.features.factory import BUNDLED_STAGES, RANDOM, make_rgb_extractor
from mmad_bank.features.point_alignment import measured_points
from mmad_bank.methods.base import Method, Part, Prediction, Reason, Samples
from mmad_bank.methods.copies import copies_of
from mmad_bank.methods.map_scale import scale_by_stage, spread
from mmad_bank.methods.mdss.point_patches import CloudPatches, cut_patches
from mmad_bank.methods.mdss.score_alignment import Moments, ScoreAlignment
from mmad_bank.methods.mdss.signed_distance import SignedDistance
from mmad_bank.methods.options import (
    Count,
    GridOptions,
    Idle,
    Range,
    RGBOptions,
    SelectionOptions,
    accepts_former_names,
)
from mmad_bank.methods.padding import window_of
from mmad_bank.methods.prediction import Gaussian, check_explained
from mmad_bank.methods.shape_guided.cells import cells_under
from mmad_bank.methods.shape_guided.explaining import Explanation, patch_around
from mmad_bank.methods.shape_guided.memory import CODES, COLORS, DualMemory
from mmad_bank.methods.shape_guided.sparse_coding import reconstruct
from mmad_bank.methods.shape_guided.training_data import Pixels, ShapeData, cut_all, training_patches
from mmad_bank.methods.shareable import TRAIN, CategoryData
from mmad_bank.methods.signed_distance_method import Coverage, SignedDistanceMethod
from mmad_bank.methods.training_features import Dumps, Seen, bar, extract_split
from mmad_bank.methods.verdicts import FUSED

LINKS, NETWORK = "links.safetensors", "signed-distance.safetensors"
_UNSMOOTHED = Gaussian(0.0)
_ROUNDING = 1e-6  # of a feature, in float32


@accepts_former_names
@dataclass(kw_only=True, eq=False, repr=False)
class ShapeGuided(SignedDistanceMethod, GridOptions, SelectionOptions, RGBOptions):
    """Patches of points find their nearest codes in a bank, and these say with which RGB features pixels are compared.

    Signed distances describe each patch of a cloud by a code. A bank holds the codes of the training images, another
    one the RGB features at the same places. A code is rebuilt from its nearest ones, and a point is scored by its
    distance to the surface that the rebuilt code describes; the features that these codes lead to rebuild the RGB
    features of the foreground. Both maps are aligned by their statistics on training images, each compared with the
    others; the map is the larger one at every pixel, the score the product of both parts' scores.

    The published code is followed where the paper leaves a choice. The defaults are for a GPU; ``bundled`` arguments
    keep a training on a CPU to minutes.

    Attributes:
        extractors_: Extractor of the RGB features.
        memory_: The two linked banks.
        alignment_: Alignment of the two maps.

    Raises:
        InputError: An argument is out of its range, or is none of its choices.

    Example:
        >>> method = ShapeGuided("efficientnet_lite0", sdf_width=64, sdf_steps=300)
        >>> method.coverage
        (5.0, 10.0)
    """

    name: ClassVar[str] = "shape_guided"
    prediction_arguments: ClassVar[frozenset[str]] = frozenset({"bank_precision", "decision", "runtime", "scored_by"})
    bundled: ClassVar[Mapping[str, Any]] = {
        "rgb_layers": BUNDLED_STAGES, "coverage": (5.0, 5.0), "sdf_steps": 1200, "sdf_batch": 12, "sdf_queries": 60,
        "sdf_lr": 1e-3, "sdf_width": 96, "aggregation": "mean",
        # After so short a training codes tell little. Chosen on the data of seed 10, which are not reported on.
        "scored_by": "maps",
    }  # fmt: skip

    rgb: str = field(default="wide_resnet50_2.racm_in1k", kw_only=False)
    coverage: tuple[Coverage, Coverage] | None = (5.0, 10.0)
    ratio: Annotated[float, Range(above=0, most=1, such_as="0.1 for 10%")] = 1.0

    code_neighbors: Count = 10
    """Nearest codes that a patch is rebuilt from, and whose RGB features it leads to."""

    color_neighbors: Count = 5
    """Nearest of those RGB features that the feature of a place is rebuilt from."""

    reconstruction: Literal["sparse", "nearest"] = "sparse"
    """Reconstruction of codes and features: the weighted sum of a few of the neighbors that comes nearest (orthogonal
    matching pursuit), or the nearest one."""

    atoms: Count = 3
    """Neighbors in such a sum."""

    margin: Annotated[int, Range(0, 2**14)] = 2
    """Cells of the grid that a patch is widened by, to all sides, where it leads to RGB features: it sees its edge."""

    scored_by: Literal["reconstructions", "maps"] = "reconstructions"
    """Score of an image by either part: the largest distance of a code, or of an RGB feature, from its reconstruction,
    as in the published code, or the maximum of the part's map."""

    alignment_images: Count = 25
    """Number of training images that the maps are aligned on: the first ones."""

    decision: Literal["align", "calibrated"] = "align"
    """Decision over both parts: the alignment of the maps, whose scores are multiplied, or the parts' scores on the
    scale of held-out normal images (see ``calibration`` and :class:`mmad_bank.fusion.CalibratedFusion`)."""

    def _begin(self) -> None:
        super()._begin()
        self.extractors_: Extractors
        self.memory_: DualMemory
        self.alignment_: ScoreAlignment
        self._seen = Seen()  # of the training samples, while a fit goes on

    def _idle(self) -> Idle:
        yield self.reconstruction != "sparse", "atoms", f"reconstruction={self.reconstruction}"
        yield self.ratio == 1, "projection_dim", "ratio=1"

    def _parts_of_decision(self) -> tuple[str, ...]:
        return CODES, COLORS

    def _keep_own(self, fitted: Method) -> None:
        super()._keep_own(fitted)
        self.extractors_ = self.extractors_.by(self.runtime)
        own, precision = self.memory_, self.bank_precision
        self.memory_ = replace(
            own, codes=own.codes.with_precision(precision), colors=own.colors.with_precision(precision)
        )

    # Fitting.

    def _make_extractors(self, weights: str) -> Extractors:
        with argument_called(layers="rgb_layers"):
            rgb = make_rgb_extractor(
                self.rgb, weights, layers=self.rgb_layers, grid=self.grid, image_size=self.image_size,
                compute_dtype=self.compute_dtype, runtime=self.runtime,
            )  # fmt: skip
        return Extractors({"rgb": rgb, "xyz": Pixels()}, self.device)

    def _fit(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        del validation
        own = self.training_data(dataset, stages)
        dumps = own.data.dumps
        self.learn_parts([own], stages)
        self.memory_ = self._remembered(dumps, stages)
        self.alignment_ = self._align(dumps, stages)
        origin = "training images, each compared with the others' patches"
        self.map_scale_ = scale_by_stage(self._maps_of_others(dumps), origin, len(self.train_ids_), stages)

    def _scale_maps(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        """Nothing is left to do: the scale was measured on the features, which go with the end of the fit."""

    def training_data(self, dataset: Samples, stages: Stages) -> CategoryData:
        """Extract RGB features and cut patches, see :meth:`Method.training_data`."""
        self.extractors_ = self._make_extractors(self.rgb_weights)
        dumps, self._seen = extract_split(self, self.extractors_, "train", dataset, stages)
        self._seen.note(self)
        patches, counts = np.zeros((0, self.patch_size, 3), np.float32), torch.zeros(0, dtype=torch.int64)
        if self.source_of("sdf_weights") == TRAIN:
            patches, counts = training_patches(dumps["xyz"], lambda cloud: self._cut(cloud, 0), stages)
        return CategoryData("", ShapeData(dumps, patches, counts), stages, len(self._seen.ids))

    def _cut(self, cloud: Tensor, use: int) -> tuple[CloudPatches, Tensor]:
        """Cut a cloud (S·S, 3) into patches, with the coverage of training (0) or of prediction (1)."""
        points, pixels = measured_points(cloud.view(*self._size, 3).cpu())
        return cut_patches(points, size=self.patch_size, coverage=self._coverage(use)), pixels

    def _remembered(self, dumps: Dumps, stages: Stages) -> DualMemory:
        """Make the two banks, or take those that an earlier run has made."""
        files = {name: stages.state(f"bank-{name}.safetensors") for name in (CODES, COLORS)}

        def write(path: Path) -> None:
            memory = self._memory_of(dumps, stages)
            memory.codes.save(files[CODES])
            memory.colors.save(files[COLORS])
            memory.save_links(path)

        links = stages.run(LINKS, write)
        own = {
            name: MemoryBank.load(path, self.device, bank_precision=self.bank_precision) for name, path in files.items()
        }
        return DualMemory.of(own, links)

    def _memory_of(self, dumps: Dumps, stages: Stages) -> DualMemory:
        assert self.sdf_ is not None
        codes, images, cells = [], [], []
        for image, (cut, pixels) in enumerate(cut_all(dumps["xyz"], lambda cloud: self._cut(cloud, 1), stages)):
            codes.append(self.sdf_.codes(cut.points).cpu())
            images.append(torch.full((len(cut.points),), image))
            cells.append(self._cells(pixels[cut.rows], self._seen.frames[image]))
        return DualMemory.build(
            torch.cat(codes), torch.cat(images), torch.cat(cells), dumps["rgb"], ratio=self.ratio,
            device=self.device, bank_precision=self.bank_precision, progress=stages.progress, seed=self.seed,
            projection_dim=self.projection_dim,
            extractors={CODES: "codes of signed distances", COLORS: self.extractors_.names["rgb"]},
        )  # fmt: skip

    def _cells(self, pixels: Tensor, frame: Frame | None) -> Tensor:
        """Return the cells (P, h·w) that patches with their points on pixels (P, K) lead to; none of padding."""
        shown = torch.zeros(self.grid, dtype=torch.bool)
        shown[window_of(frame, self.grid)] = True
        return cells_under(pixels, self._size, self.grid, self.margin) & shown.flatten()

    def _align(self, dumps: Dumps, stages: Stages) -> ScoreAlignment:
        """Measure both maps of training images, each compared with the others, where they have a score."""

        def write(path: Path) -> None:
            moments = {name: Moments() for name in (CODES, COLORS)}
            n = min(self.alignment_images, len(self.train_ids_))
            with bar("aligning the maps", n, stages) as report:
                for image in range(n):
                    for name, part in self._as_if_new(dumps, image).items():
                        moments[name].update(part.map(self._size)[_UNSMOOTHED(part.scores, self._size) > 0])
                    report(image + 1)
            path.write_text(json.dumps(asdict(ScoreAlignment.of(moments[COLORS], moments[CODES]))))

        return ScoreAlignment(**json.loads(stages.run("alignment.json", write).read_text()))

    def _as_if_new(self, dumps: Dumps, image: int) -> dict[str, Part]:
        """Compare a training image with the others; a single one with itself, without the nearest entries."""
        own = copies_of(image, self._seen.marks, self.modalities)
        rgb, cloud = (torch.from_numpy(np.array(dumps[name][image])) for name in ("rgb", "xyz"))
        without = own if len(own) < len(self.train_ids_) else ()
        return self._compared(rgb.to(self.device), cloud, self._seen.frames[image], without, itself=not without)

    def _maps_of_others(self, dumps: Dumps) -> Iterator[dict[str, Tensor]]:
        """Yield maps of some training images as if they had not been trained on."""
        for image in spread(len(self.train_ids_)):
            parts = self._as_if_new(dumps, image)
            maps = {FUSED: self._union(parts), **{name: part.map(self._size) for name, part in parts.items()}}
            yield {name: picture_of(one, self._seen.frames[image]) for name, one in maps.items()}

    # Predicting.

    @property
    def _size(self) -> tuple[int, int]:
        return self.image_size, self.image_size

    @torch.no_grad()
    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        features, predictions = self.extractors_(samples), []
        for b, sample in enumerate(samples):
            parts = self._compared(features["rgb"][b], features["xyz"][b], sample.frame)
            with timed(sections.ALIGNMENT):
                whole = self._union(parts)
            predictions.append(Prediction(parts[CODES].score * parts[COLORS].score, whole, sample, parts))
        return predictions

    @torch.no_grad()
    def _compared(
        self, rgb: Tensor, cloud: Tensor, frame: Frame | None, without: Sequence[int] = (), *, itself: bool = False
    ) -> dict[str, Part]:
        """Compare RGB features (P, D) and a cloud (S·S, 3) with the banks, but for what some images left in them.

        ``itself`` leaves out the nearest entry of each, which is the patch itself if the image is the only one.
        """
        assert self.sdf_ is not None
        with timed(sections.DISTANCES):
            cut, pixels = self._cut(cloud, 1)
            codes = self.sdf_.codes(cut.points)
        with timed(sections.SEARCH):
            rows = _but_first(self.memory_.nearest(codes, self.code_neighbors + itself, without)[1], itself)
            rebuilt = self._rebuilt(codes, self.memory_.codes.vectors, rows)
        with timed(sections.DISTANCES):
            distances = torch.zeros(self.image_size**2)
            distances[pixels] = self.sdf_.score_patches(
                cut, rebuilt, len(pixels), aggregation=self.aggregation, compute_dtype=self.compute_dtype
            )
        with timed(sections.SEARCH):
            cells = self._cells(pixels[cut.rows], frame).any(0)
            guided = self.memory_.guided(rows, without)
            features = rgb[cells.to(rgb.device)]
            nearest = _but_first(self.memory_.match(features, guided, self.color_neighbors + itself)[1], itself)
            apart = torch.zeros(len(cells))
            apart[cells] = _apart(features, self._rebuilt(features, self.memory_.colors.vectors, nearest)).cpu()
        farthest = {CODES: float((codes - rebuilt).norm(dim=1).max()), COLORS: float(apart.max())}
        scores = {CODES: distances.view(self._size), COLORS: apart.view(self.grid)}
        return {name: self._part(farthest[name], own, frame) for name, own in scores.items()}

    def _rebuilt(self, vectors: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        """Return what neighbors, of the rows (Q, k) of a bank, make of vectors (Q, D)."""
        if self.reconstruction == "nearest":
            return table[rows[:, 0]]
        return reconstruct(vectors, table[rows], self.atoms)

    def _part(self, farthest: float, scores: Tensor, frame: Frame | None) -> Part:
        part = Part(farthest, scores, frame=frame, smoothing=Gaussian(self.sigma))
        if self.scored_by == "reconstructions":
            return part
        return replace(part, score=float(picture_of(part.map(self._size), frame).max()))

    def _union(self, parts: Mapping[str, Part]) -> Tensor:
        """Return the larger of both scores at every pixel, the RGB one aligned, and then smoothed.

        A place that RGB features do not score has none: the alignment may bring zero to another number.
        """
        apart, distances = (_UNSMOOTHED(parts[name].scores, self._size) for name in (COLORS, CODES))
        aligned = self.alignment_.align(apart).clamp(min=0).masked_fill(apart <= 0, 0.0)
        return Gaussian(self.sigma)(torch.maximum(aligned, distances), self._size)

    # Explaining.

    def explain(
        self, prediction: Prediction, part: str | None = None, *, place: tuple[int, int] | None = None, n: int = 4
    ) -> list[Reason]:
        """Name the normal patches, of points or of RGB features, that are nearest, see :meth:`Method.explain`.

        For a place of the points, those of the patch in whose middle it lies are looked up; a place without a point has
        none. The features of a place are compared with those that the image's own codes lead to.
        """
        self.check_fitted()
        name, place = check_explained(prediction, part, place, n, (CODES, COLORS))
        with plain_torch(), torch.no_grad():
            return self._reasons(prediction.sample, name, place, n)

    def _reasons(self, sample: Sample, name: str, place: tuple[int, int], n: int) -> list[Reason]:
        assert self.sdf_ is not None
        features, memory = self.extractors_([sample]), self.memory_
        explanation = Explanation(memory, self.train_ids_, self.frames_, self.grid)
        cut, pixels = self._cut(features["xyz"][0], 1)
        codes = self.sdf_.codes(cut.points)
        if name == COLORS:
            guided = memory.guided(memory.nearest(codes, self.code_neighbors)[1])
            return explanation.colors_near(features["rgb"][0, place[0] * self.grid[1] + place[1]], guided, n)
        patch = patch_around(pixels[cut.rows], place[0] * self.image_size + place[1])
        return [] if patch is None else explanation.codes_near(codes[patch], n)

    @property
    def memory_banks(self) -> Mapping[str, MemoryBank]:
        """The two banks of a fitted method, see :attr:`Method.memory_banks`."""
        return {CODES: self.memory_.codes, COLORS: self.memory_.colors}

    @property
    def nbytes(self) -> int:
        """Bytes that inference holds: the weights of both networks, and the banks with their links."""
        assert self.sdf_ is not None
        networks = [self.sdf_, *self.extractors_.networks.values()]
        return self.memory_.nbytes + sum(one.nbytes for network in networks for one in network.state_dict().values())

    def _facts(self) -> list[str]:
        return [f"bank {name} {len(bank):,} × {bank.dim:,}" for name, bank in self.memory_banks.items()]

    # Saving.

    def _save(self, folder: Path) -> dict[str, Any]:
        assert self.sdf_ is not None
        self.extractors_.save(folder)
        save_state(self.sdf_, folder / NETWORK)
        MultiBank(self.memory_banks).save(folder / "banks")
        self.memory_.save_links(folder / LINKS)
        return {"alignment": asdict(self.alignment_)}

    def _load(self, folder: Path, learnt: dict[str, Any]) -> None:
        self.extractors_ = self._make_extractors(RANDOM)
        self.extractors_.load(folder)
        self.sdf_ = SignedDistance(self.sdf_width)
        load_state(self.sdf_, folder / NETWORK).to(self.device).eval().requires_grad_(False)
        banks = MultiBank.load(
            folder / "banks", self.device, bank_precision=self.bank_precision, trust_index=self._trust_index
        )
        self.memory_ = DualMemory.of(banks, folder / LINKS)
        if self.memory_.places.shape != (len(self.train_ids_), self.grid[0] * self.grid[1]):
            raise ValueError(f"{LINKS}: links of another grid, or of other training images")
        self.alignment_ = ScoreAlignment.saved(learnt["alignment"])


def _but_first(rows: Tensor, leave_out: bool) -> Tensor:
    """Leave out the nearest of each, if there is another one."""
    return rows[:, 1:] if leave_out and rows.shape[1] > 1 else rows


def _apart(features: Tensor, rebuilt: Tensor) -> Tensor:
    """Return the distances (P,) of features (P, D) from what was made of others, 0 where they are but rounding."""
    distances = (features - rebuilt).norm(dim=1)
    return distances.masked_fill(distances <= _ROUNDING * features.norm(dim=1), 0.0)
