"""Common parts of the methods with memory banks: extraction, bank building, scoring, explanation, saving.

One class, because each of these parts asks the method for the same few things: names, grids, banks and extractors.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank import scoring
from mmad_bank._internal import sections
from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.checks import check_index
from mmad_bank._internal.progress import within
from mmad_bank._internal.resume import Stages, wording
from mmad_bank._internal.timing import timed
from mmad_bank._internal.torch_state import plain_torch
from mmad_bank.adaptation import FeatureAdaptation
from mmad_bank.bank import MemoryBank, MultiBank, Scores
from mmad_bank.bank.provenance import Origin, Source
from mmad_bank.calibration import numbers_of
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import as_samples
from mmad_bank.errors import InputError, NoneUsableError
from mmad_bank.extraction import Extractors
from mmad_bank.features.factory import RANDOM, make_rgb_extractor
from mmad_bank.fusion import CalibratedFusion
from mmad_bank.methods.base import Method, Part, Prediction, Reason, Samples
from mmad_bank.methods.calibrating import origin_of
from mmad_bank.methods.copies import copies_of, folds_of_marks, one_fold
from mmad_bank.methods.held_out import (
    HeldOut,
    ScoreRows,
    calibration_of,
    in_folds,
    kept_in,
    scales_of,
    score_all,
    scored,
    table_of,
)
from mmad_bank.methods.map_scale import distances_to_others, scale_by_stage, spread
from mmad_bank.methods.options import BankOptions, RGBOptions
from mmad_bank.methods.padding import score_in_windows, window_cells
from mmad_bank.methods.prediction import Gaussian, check_explained
from mmad_bank.methods.roi import (
    check_region,
    outside_unflagged,
    rows_inside,
    shown_of,
    square_inside,
)
from mmad_bank.methods.shareable import CategoryData, warn_of_other_features
from mmad_bank.methods.training_features import (
    Dumps,
    Seen,
    extract_split,
    made_of,
    share_features,
)
from mmad_bank.methods.verdicts import FUSED

BuildBank = Callable[[str, np.ndarray, int | None], MemoryBank]


@dataclass(kw_only=True, eq=False, repr=False)
class BankMethod(Method, BankOptions, RGBOptions):
    """A method whose patches are scored by their nearest vectors in one or more memory banks.

    Attributes:
        extractors_: Extractors that describe samples.
        banks_: The memory banks, by name.
        adaptation_: Adaptors of the extractors' features, applied before anything else is done with them, if there are
            some.
    """

    has_cheap_folds: ClassVar[bool] = True
    prediction_arguments: ClassVar[frozenset[str]] = frozenset(
        {"bank_precision", "n_neighbors", "reweight", "runtime", "sigma"}
    )

    def _begin(self) -> None:
        super()._begin()
        self.extractors_: Extractors
        self.banks_: MultiBank
        self.adaptation_: FeatureAdaptation | None = None
        # The last explained sample and its patch features.
        self._described: tuple[Sample, dict[str, Tensor]] | None = None
        # Of the samples that a fit sees, by split.
        self._seen: dict[str, Seen] = {}

    def _check_arguments(self) -> None:
        super()._check_arguments()
        scoring.check_reweight(self.reweight, self.n_neighbors)
        if self.projection_dim is not None:
            check_index(self.seed, "seed", 0, 2**63 - 1, "the projection takes no negative seed")

    @property
    def memory_banks(self) -> Mapping[str, MemoryBank]:
        """The memory banks of a fitted method, see :attr:`Method.memory_banks`."""
        return self.banks_

    @property
    def takes_roi(self) -> bool:
        """Whether it can leave out what lies outside a region of interest."""
        return True

    # What a method defines.

    @abstractmethod
    def _networks(self, weights: str | None) -> dict[str, nn.Module]:
        """Make the extractors by modality; ``weights`` overrides the arguments' own (``"random"`` when loading)."""

    @abstractmethod
    def _bank_names(self) -> tuple[str, ...]:
        """Name the banks."""

    def _compose(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make the banks' patch features (B, P, D) from those of the modalities."""
        return {name: features[name] for name in self._bank_names()}

    def _decide(self, images: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Fuse the banks' scores.

        Args:
            images: Scores of images (B,), by bank.
            places: Scores of places, (B, ...) in one shape for all banks: patches of one grid, or pixels. What this
                does with them is linear, place by place.
        """
        (image,), (place,) = images.values(), places.values()
        return image, place

    def _make_extractors(self, networks: dict[str, nn.Module]) -> Extractors:
        """Put the networks together."""
        return Extractors(networks, self.device)

    def _training_extractors(self, extractors: Extractors) -> Extractors:
        """Return what describes the training samples for the trainings: the extractors themselves."""
        return extractors

    def _learn_adaptation(self, members: Sequence[CategoryData], stages: Stages) -> None:
        """Learn to adapt the extractors' features, see :attr:`adaptation_`."""

    def _learn_features(self, members: Sequence[CategoryData], stages: Stages) -> None:
        """Learn what :meth:`_compose` needs, from features that :meth:`_adapted` has adapted."""

    def _learn_decision(self, dumps: Dumps, validation: Dumps | None, stages: Stages) -> None:
        """Learn what :meth:`_decide` needs."""

    @abstractmethod
    def _grid(self, bank: str) -> tuple[int, int]:
        """Return rows and columns of the patches that a bank scores, and of those that a modality's extractor gives."""

    def _divisor(self) -> float:
        """Return what the banks' image scores are divided by before they are reweighted."""
        return 1.0

    def rule_of(self, bank: str) -> dict[str, Any]:
        """Return by which rule a bank's patches make an image's score, for programs that score with the bank alone.

        Example:
            >>> from mmad_bank.methods import PatchCore
            >>> PatchCore("efficientnet_lite0", grid=(14, 14)).rule_of("rgb")
            {'grid': (14, 14), 'reweight': 'patchcore', 'n_neighbors': 9, 'divisor': 1.0}
        """
        return {
            "grid": self._grid(bank), "reweight": self.reweight,
            "n_neighbors": scoring.check_reweight(self.reweight, self.n_neighbors), "divisor": self._divisor(),
        }  # fmt: skip

    def _standardize(self, bank: str) -> bool:
        """Say whether a bank measures distances on (f - mean)/std."""
        del bank
        return False

    def _rgb_network(self, weights: str | None) -> nn.Module:
        """Make the extractor of colour images that the arguments ask for."""
        with argument_called(layers="rgb_layers"):
            return make_rgb_extractor(
                self.rgb, weights or self.rgb_weights, layers=self.rgb_layers,
                grid=self._grid("rgb"), image_size=self.image_size, compute_dtype=self.compute_dtype,
                runtime=self.runtime,
            )  # fmt: skip

    # Sharing what another fit has left.

    def _keep_own(self, fitted: Method) -> None:
        super()._keep_own(fitted)
        banks = {name: self.banks_[name].with_precision(self.bank_precision) for name in self._bank_names()}
        self.banks_ = MultiBank(banks)
        self.extractors_ = self.extractors_.by(self.runtime)

    def reuse_features(
        self,
        dataset: Samples,
        source: str | os.PathLike[str],
        workdir: str | os.PathLike[str],
        *,
        validation: Samples | None = None,
    ) -> bool:
        """Let the next fit begin with the training features that another method's fit has left, if they are the same.

        They are if the same extractors made them of the same samples, prepared in one way. Extracting takes most of the
        time of many fits.

        Args:
            dataset: The samples that this method will be fitted on.
            source: ``workdir`` of the other fit.
            workdir: ``workdir`` of the fit to come; the features are copied there.
            validation: Validation samples, as for :meth:`fit`.

        Returns:
            Whether there were such features.

        Raises:
            InputError: No sample is given, they were prepared in several ways, or ``workdir`` cannot be written.

        Example:
            >>> lsfa = LSFA(grid=(28, 28))  # doctest: +SKIP
            >>> lsfa.reuse_features(train, "work/m3dm", "work/lsfa")  # doctest: +SKIP
            True
            >>> lsfa.fit(train, workdir="work/lsfa")  # doctest: +SKIP
        """
        samples = self._by_part(as_samples(dataset, "dataset"), "dataset")
        before = self.preprocessing_
        self.preprocessing_ = self._choose_preprocessing(samples)
        try:
            own = self._fingerprint(samples, self._held_out(validation, self._count(samples)))
        finally:
            self.preprocessing_ = before
        extractors = self._training_extractors(self._make_extractors(self._networks(RANDOM)))
        return share_features(Path(source), Path(workdir), own, extractors.outputs)

    # Fitting.

    def _fit(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        own = self.training_data(dataset, stages)
        self.learn_parts([own], stages)
        dumps = self._composed("train", self._adapted("train", own.data, stages), stages)
        self.banks_ = MultiBank(self._build_banks(dumps, partial(self._saved_bank, stages=stages)))
        kept_out = self._kept_out(validation, stages)
        held_out = self._score_held_out(dumps, kept_out, stages)
        scales = None if held_out is None else scales_of(held_out, self._map_of, self.device, self.roi_)
        self.calibrated_ = None if scales is None else scales.fusion()
        self._learn_decision(dumps, kept_out, stages)
        if held_out is not None:
            shown = None if self._of_parts is None else self._of_parts.of(held_out.ids)
            of_others = scales if self._on_one_scale else None
            self.calibration_ = calibration_of(held_out, self._fuse_scores, self.device, self.roi_, shown, of_others)
        origin = "training images, each compared with the others' patches"
        self.map_scale_ = scale_by_stage(self._maps_of_others(dumps), origin, len(self.train_ids_), stages)

    def _kept_out(self, validation: Samples | None, stages: Stages) -> Dumps | None:
        """Describe the validation samples, if there are some."""
        if validation is None or len(validation) == 0:
            return None
        try:
            extracted, seen = extract_split(self, self.extractors_, "validation", validation, stages)
        except NoneUsableError as error:
            if self.needs_validation or self.calibration == "validation":
                raise
            self.skipped_ |= error.left_out  # verdicts do without it
            return None
        self.skipped_ |= seen.skipped
        self._seen["validation"] = seen
        return self._composed("validation", self._adapted("validation", extracted, stages), stages)

    def training_data(self, dataset: Samples, stages: Stages) -> CategoryData:
        """Extract the features, see :meth:`Method.training_data`."""
        self.extractors_ = self._make_extractors(self._networks(None))
        self._ready_extractors(dataset, stages)
        dumps, seen = extract_split(self, self._training_extractors(self.extractors_), "train", dataset, stages)
        seen.note(self)
        self._seen = {"train": seen}
        return CategoryData("", dumps, stages, len(seen.ids))

    def _ready_extractors(self, dataset: Samples, stages: Stages) -> None:
        """Show the extractors what they have to see of the training samples before they describe any."""

    def learn_parts(self, members: Sequence[CategoryData], stages: Stages) -> None:
        """Learn to adapt features, and then to fuse the adapted ones, see :meth:`Method.learn_parts`."""
        self._learn_adaptation(members, stages)
        self._learn_features(members, stages)
        for part in self.shareable:
            warn_of_other_features(part.argument, self.source_of(part.argument), self.features_of(part.name))

    def _fingerprint(self, dataset: Samples, validation: Samples | None) -> dict[str, Any]:
        facts = json.loads(json.dumps(self._extraction_facts()))
        return {**super()._fingerprint(dataset, validation), "extraction": facts}

    def _extraction_facts(self) -> dict[str, Any]:
        """Say how features are extracted, as far as arguments leave it to the recipe or to others."""
        return {"grids": {modality: self._grid(modality) for modality in ("rgb", "xyz")}}

    def features_of(self, part: str) -> str:
        """Name the extractors, whatever the grid on which they describe patches, see :meth:`Method.features_of`."""
        del part
        return " + ".join(re.sub(r" grid \d+x\d+", "", name) for name in self.extractors_.names.values())

    def _score_held_out(self, dumps: Dumps, validation: Dumps | None, stages: Stages) -> HeldOut | None:
        """Score images that the banks do not hold, as the argument ``calibration`` says."""
        train, own = self._seen["train"], Seen() if validation is None else self._seen["validation"]
        way, kept = self._way_and_kept(train.ids, own.ids, lambda: (own.marks, train.marks))
        if way == "validation":
            assert validation is not None
            score = partial(score_all, self._score_patches, validation, own.frames, kept, self.device, stages)
            frames, ids = [own.frames[i] for i in numbers_of(kept)], [own.ids[i] for i in numbers_of(kept)]
            return kept_in(stages, score, frames, ids, origin_of(way, self._of_parts))
        return self._score_in_folds(dumps, stages) if way == "folds" else None

    def _score_in_folds(self, dumps: Dumps, stages: Stages) -> HeldOut | None:
        """Score the training images, each by banks of others; None if all are equal, which a warning says."""
        seen = self._seen["train"]
        frames, groups = seen.frames, self._groups(seen.ids)
        folds = folds_of_marks(seen.marks, self.modalities, self.calibration_folds, groups)
        if len(folds) < 2 and (self.calibration == "folds" or self._on_one_scale):
            raise InputError(one_fold(len(frames), groups))
        if len(folds) < 2:
            warnings.warn(f"{one_fold(len(frames), groups)}; there are no verdicts", stacklevel=2)
            return None

        def score_with(images: list[slice]) -> ScoreRows:
            return self._scoring_by(self._build_banks(dumps, partial(self._select_bank, images=images)))

        make = partial(in_folds, score_with, dumps, frames, folds, self.device, stages)
        return kept_in(stages, make, frames, seen.ids, origin_of("folds", self._of_parts))

    def _scoring_by(self, banks: Mapping[str, MemoryBank]) -> ScoreRows:
        """Return the rule by which patches are scored, with other banks than the own ones."""
        other = type(self)(**self.arguments())
        vars(other).update(vars(self), banks_=MultiBank(banks))
        return other._score_patches  # noqa: SLF001 (its own: a copy of this one)

    def _calibrate(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        """Nothing is left to do: held-out images were scored by their features, which go with the end of the fit."""

    def _scale_maps(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        """Nothing is left to do: the scale was measured on the features, which go with the end of the fit."""

    def _maps_of_others(self, dumps: Dumps) -> Iterator[dict[str, Tensor]]:
        """Yield maps of some training images as if they had not been trained on, see :func:`distances_to_others`."""
        for image in spread(len(self.train_ids_)):
            frame, scores = self._seen["train"].frames[image], {}
            for name, bank in self.banks_.items():
                shown = shown_of(frame, self._grid(name), self.roi_)
                inside, repeated = window_cells(self._grid(name), shown)
                patches = torch.from_numpy(np.array(dumps[name][image]))
                distances = distances_to_others(bank, patches, self._equal_to(image))
                if distances is None:  # there is one image only
                    return
                distances = distances[inside][repeated]
                scores[name] = Scores(distances[None], distances.max()[None], torch.empty(0))
            maps = {FUSED: self._fuse_scores(scores)[1]}
            if len(scores) > 1:
                maps |= {name: self._map_of(name, own.patch) for name, own in scores.items()}
            square = square_inside(self.roi_, frame)
            yield {name: picture_of(one[0], frame) if square is None else one[0][square] for name, one in maps.items()}

    def _equal_to(self, image: int) -> list[int]:
        """Return the number of a training image, and those of its copies."""
        return copies_of(image, self._seen["train"].marks, self.modalities)

    def _composed(self, split: str, dumps: Dumps, stages: Stages) -> Dumps:
        """Write what is not a modality's own features to files, and map them."""
        own = set(self._bank_names()) <= set(dumps)
        return {name: self._dump(split, name, dumps, stages, own) for name in self._bank_names()}

    def _dump(self, split: str, name: str, dumps: Dumps, stages: Stages, own: bool) -> np.ndarray:
        if own or name in dumps:
            return dumps[name]
        return made_of(dumps, f"{split}-{name}.npy", lambda one: self._compose(one)[name], stages, self.device)

    def _adapted(self, split: str, dumps: Dumps, stages: Stages) -> Dumps:
        """Write adapted features to files, and map them, if there is an adaptation."""
        adaptation = self.adaptation_
        if adaptation is None:
            return dumps

        def table(name: str) -> np.ndarray:
            own = {name: dumps[name]}
            return made_of(own, f"{split}-{name}-adapted.npy", lambda x: adaptation.adapt(x)[name], stages, self.device)

        return {name: table(name) for name in dumps}

    def _build_banks(self, dumps: Dumps, build: BuildBank) -> dict[str, MemoryBank]:
        """Build the banks of dumps, each by ``build`` of its name, its features and its size (None: the ratio)."""
        return {name: build(name, dumps[name], None) for name in self._bank_names()}

    def _select_bank(
        self, name: str, table: np.ndarray, size: int | None, *, images: list[slice] | None = None,
        progress: bool = False,
    ) -> MemoryBank:  # fmt: skip
        """Select a bank of the patches that lie inside the region of interest: of all images, or of some runs."""
        rows = rows_inside(self.roi_, self._seen["train"].frames, self._grid(name))
        return MemoryBank.build(
            table_of(table, rows, images), self.ratio, size=size, projection_dim=self.projection_dim,
            seed=self.seed, progress=progress, standardize=self._standardize(name), device=self.device,
            extractor=self._extractor_name(name), bank_precision=self.bank_precision,
        )  # fmt: skip

    def _saved_bank(self, name: str, table: np.ndarray, size: int | None, *, stages: Stages) -> MemoryBank:
        """Select a bank, or take the one that an earlier run has selected."""

        def write(path: Path) -> None:
            with within(f"{name} bank", *self._place_of(name)):
                bank = self._select_bank(name, table, size, progress=stages.progress)
                rows = rows_inside(self.roi_, self._seen["train"].frames, self._grid(name))
                bank.taken_from([Source(f"{name} features", table.shape[0] * table.shape[1], table.shape[1])], rows)
                bank.save(path)

        path = stages.run(f"bank-{name}.safetensors", write)
        return MemoryBank.load(path, self.device, bank_precision=self.bank_precision)

    def _place_of(self, bank: str) -> tuple[int, int]:
        """Return the number of a bank among the banks, from 1, and how many there are."""
        names = self._bank_names()
        return names.index(bank) + 1, len(names)

    def _extractor_name(self, bank: str) -> str:
        names = self.extractors_.names
        name = names.get(bank) or " + ".join(names.values())
        return name if self.adaptation_ is None else f"{name} adapted"

    def _train_scores(
        self, dumps: Dumps, frames: Sequence[Frame | None], stages: Stages
    ) -> Iterator[tuple[Sequence[Frame | None], dict[str, Scores]]]:
        """Yield the frames of images of dumps, and the banks' scores of those, a few images at a time."""
        what = "scoring normal images for the decision"
        yield from scored(self._score_patches, dumps, frames, self.device, stages, what)

    def _score_rows(self, bank: str, rows: Tensor) -> Scores:
        """Score images' patches (B, P, D) by a bank, with the method's rule for the image score."""
        return self.banks_[bank].score(
            rows, reweight=self.reweight, n_neighbors=self.n_neighbors, divisor=self._divisor()
        )  # fmt: skip

    def _score_patches(self, patches: Mapping[str, Tensor], frames: Sequence[Frame | None]) -> dict[str, Scores]:
        """Score the patches of images by the banks; those of padding are left out."""
        scores = {}
        for name in self.banks_:
            rule = partial(self._score_rows, name)
            grid = self._grid(name)
            shown = [shown_of(frame, grid, self.roi_) for frame in frames]
            scores[name] = score_in_windows(rule, patches[name], shown, grid)
        return scores

    def _map_of(self, bank: str, patch: Tensor) -> Tensor:
        """Return the maps (B, S, S) of a bank's patch scores."""
        return scoring.anomaly_map(patch, self._grid(bank), (self.image_size, self.image_size), self.sigma)

    def _fuse_scores(
        self, scores: Mapping[str, Scores], scale: CalibratedFusion | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fuse the banks' scores of images (B,), and their maps (B, S, S); on another scale if one is given.

        Fusing places is linear, and so are enlarging and blurring: where the banks have one grid, fusing patches and
        then making one map gives what fusing the banks' maps pixel by pixel would.
        """
        images = {name: own.image for name, own in scores.items()}
        first = next(iter(scores))
        if all(self._grid(name) == self._grid(first) for name in scores):
            image, patch = self._decided(images, {name: own.patch for name, own in scores.items()}, scale)
            return image, self._map_of(first, patch)
        maps = {name: self._map_of(name, own.patch) for name, own in scores.items()}
        return self._decided(images, maps, scale)

    def _decided(
        self, images: Mapping[str, Tensor], places: Mapping[str, Tensor], scale: CalibratedFusion | None
    ) -> tuple[Tensor, Tensor]:
        """Fuse the banks' scores as the method does, or on the scale of held-out images."""
        if not self._on_one_scale:
            return self._decide(images, places)
        one = scale or self.calibrated_
        assert one is not None
        return one.fuse_images(images), one.fuse_pixels(places)

    def _parts_of_decision(self) -> tuple[str, ...]:
        names = self._bank_names()
        return names if len(names) > 1 else ()

    def _rescaled(self, prediction: Prediction) -> Prediction:
        return prediction  # it is already: see _decided

    # Predicting.

    def prepare(self, sample: Sample, *, force: bool = False) -> Sample:
        """Preprocess a sample, see :meth:`Method.prepare`; one must lie in the region of interest in part."""
        prepared = super().prepare(sample, force=force)
        check_region(self.roi_, prepared)
        return prepared

    def _features(self, samples: list[Sample]) -> dict[str, Tensor]:
        features = self.extractors_(samples)
        if self.adaptation_ is None:
            return features
        with timed(sections.ADAPTATION):
            return self.adaptation_.adapt(features)

    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        features = self._features(samples)
        with timed(sections.FUSION):
            patches = self._compose(features)
        with timed(sections.SEARCH):
            scores = self._score_patches(patches, [sample.frame for sample in samples])
        with timed(sections.DECISION):
            image, fused = self._fuse_scores(scores)
            maps = fused.cpu()
        return [
            Prediction(
                float(image[b]),
                outside_unflagged(maps[b], square_inside(self.roi_, sample.frame)),
                sample,
                {name: self._part(name, own, b, sample) for name, own in scores.items()},
                roi=self.roi_,
            )
            for b, sample in enumerate(samples)
        ]

    def _part(self, bank: str, scores: Scores, b: int, sample: Sample) -> Part:
        nearest = scores.nearest[b].view(self._grid(bank)).cpu()
        patch = scores.patch[b].view(self._grid(bank)).cpu()
        return Part(float(scores.image[b]), patch, nearest, sample.frame, Gaussian(self.sigma), self.roi_)

    def describe(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the patch features of prepared samples, by bank, as the banks hold them and are searched for them.

        Args:
            samples: B samples, prepared as the method's own.

        Returns:
            float32 (B, P, D) by bank, row by row over its grid.

        Raises:
            InputError: Nothing is fitted, or a sample cannot be used.

        Example:
            >>> method.describe([sample])["xyz"].shape  # doctest: +SKIP
            torch.Size([1, 3136, 1152])
        """
        self.check_fitted()
        with plain_torch(), torch.no_grad():
            return self._compose(self._features(list(samples)))

    def explain(
        self, prediction: Prediction, part: str | None = None, *, place: tuple[int, int] | None = None, n: int = 4
    ) -> list[Reason]:
        """Name the normal patches that are nearest to a patch, see :meth:`Method.explain`."""
        self.check_fitted()
        name, place = check_explained(prediction, part, place, n, self._bank_names())
        grid, bank = self._grid(name), self.banks_[name]
        with plain_torch(), torch.no_grad():
            query = self._query(prediction.sample, name, place)
            distances, rows = bank.search(query, min(n, len(bank)))
        return [
            self._reason(origin, distance, grid)
            for distance, origin in zip(distances[0].tolist(), bank.provenance(rows[0]), strict=True)
        ]

    def _query(self, sample: Sample, bank: str, place: tuple[int, int]) -> Tensor:
        """Return a sample's feature (1, D) at a place of a bank's grid."""
        return self._patches_of(sample)[bank][0, place[0] * self._grid(bank)[1] + place[1]][None]

    def _reason(self, origin: Origin, distance: float, grid: tuple[int, int]) -> Reason:
        """Say of a bank vector which training picture it came from, and where it lies in it."""
        if origin.image is None or origin.patch is None:
            return Reason(None, None, distance)
        place = (int(origin.patch) // grid[1], int(origin.patch) % grid[1])
        frame = self.frames_[int(origin.image)] if self.frames_ else None
        box = None if frame is None else frame.box(place, grid)
        return Reason(self.train_ids_[int(origin.image)], place, distance, box)

    def _patches_of(self, sample: Sample) -> dict[str, Tensor]:
        """Return a sample's patch features by bank; the last sample's are kept, for the next bank."""
        kept = self._described  # one look: another thread may put its own sample there
        if kept is None or kept[0] is not sample:
            kept = self._described = sample, self._compose(self._features([sample]))
        return kept[1]

    def _facts(self) -> list[str]:
        return [f"bank {name} {len(bank):,} × {bank.dim:,}" for name, bank in self.banks_.items()]

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities of a sample that the method looks at: ``"rgb"``, ``"xyz"``, or both."""
        fitted = getattr(self, "extractors_", None)
        return frozenset(self._networks_needed() if fitted is None else fitted.networks)

    def _networks_needed(self) -> set[str]:
        """Name the modalities that the banks are made of."""
        return {"rgb", "xyz"}

    @property
    def calibration_outdated(self) -> bool:
        """Whether a bank was extended since the model was calibrated: too few images are called bad then."""
        # A fit takes each bank from one table; what extends it adds another source.
        return self.calibration_ is not None and any(len(bank.sources) > 1 for bank in self.banks_.values())

    @property
    def nbytes(self) -> int:
        """Bytes that inference holds: the weights of all networks, and the banks."""
        weights = [tensor for network in self._all_networks() for tensor in network.state_dict().values()]
        return sum(tensor.nbytes for tensor in weights) + self.banks_.nbytes

    def _all_networks(self) -> list[nn.Module]:
        """Return the networks that inference runs."""
        adaptation = [] if self.adaptation_ is None else [self.adaptation_]
        return [*self.extractors_.networks.values(), *adaptation]

    # Saving.

    def _save(self, folder: Path) -> dict[str, Any]:
        self.extractors_.save(folder)
        self.banks_.save(folder / "banks")
        if self.adaptation_ is not None:
            self.adaptation_.save(folder / "adaptation.safetensors")
        return {"adaptation": self.adaptation_ is not None}

    def _load(self, folder: Path, learnt: dict[str, Any]) -> None:
        self.extractors_ = self._make_extractors(self._networks(RANDOM))
        self.extractors_.load(folder)
        if learnt.get("adaptation"):
            dims = self.extractors_.dims
            adaptation = FeatureAdaptation(dims["xyz"], dims["rgb"])
            adaptation.load_checkpoint(folder / "adaptation.safetensors")
            self.adaptation_ = adaptation.to(self.device).eval()
        self.banks_ = MultiBank.load(
            folder / "banks", self.device, bank_precision=self.bank_precision, trust_index=self._trust_index
        )
        if tuple(self.banks_) != self._bank_names():
            raise KeyError(f"banks {', '.join(self._bank_names())}")


@wording(r"bank-(.+)\.safetensors")
def _word_bank(_: Path, name: str) -> str:
    return f"the {name} bank"
