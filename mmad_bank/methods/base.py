"""The interface of all methods: fit on normal samples, predict a score and a map, save to a folder, load from it.

One class, most of it the public methods' docstrings, which are the contract of all methods; what it does with samples,
folders and fingerprints lies in the modules beside it.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast, overload

import torch
from torch import Tensor

from mmad_bank._internal import sections
from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.folders import read_folder
from mmad_bank._internal.json_values import inside
from mmad_bank._internal.parameters import Parameter, check_parameters, parameters_of
from mmad_bank._internal.resume import Stages
from mmad_bank._internal.timing import timed
from mmad_bank._internal.torch_state import plain_torch
from mmad_bank._internal.training import seeded
from mmad_bank.bank import MemoryBank
from mmad_bank.calibration import check_promise, numbers_of
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.names import category_of
from mmad_bank.data.recipes import Preprocessing
from mmad_bank.data.roi import RegionOfInterest
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import (
    Samples,
    as_samples,
    named,
)
from mmad_bank.data.views import ViewPattern
from mmad_bank.errors import FormatError, InputError, MmadBankError
from mmad_bank.features.factory import BUNDLED_RGB, PRETRAINED
from mmad_bank.fusion import CalibratedFusion
from mmad_bank.methods.calibrating import (
    CALIBRATED,
    LEAST,
    NOTHING_HELD_OUT,
    calibrate_by_predicting,
    fused_on_one_scale,
    way_of,
)
from mmad_bank.methods.copies import Mark, marks_of, not_among
from mmad_bank.methods.fingerprint import fingerprint
from mmad_bank.methods.inputs import Input, is_dataset, to_sample
from mmad_bank.methods.map_scale import MapScale, scale_by_stage, spread
from mmad_bank.methods.model_folder import (
    MANIFEST,
    blaming_manifest,
    check_sizes,
    pack_frames,
    read_manifest,
    unpack_frames,
    verify_files,
    write_model,
)
from mmad_bank.methods.options import FORMER_NAMES, VERDICT_ARGUMENTS, MethodOptions
from mmad_bank.methods.parts import IMAGES, PARTS, FitParts, some_of
from mmad_bank.methods.prediction import Part, Prediction, Reason, check_explained
from mmad_bank.methods.preparing import (
    held_out,
    name_of,
    objections_to,
    prepare_as,
    preprocessing_of,
    refuse_missing,
    refuse_other_preparation,
)
from mmad_bank.methods.roi import region_of
from mmad_bank.methods.shareable import (
    NO_FILES,
    TRAIN,
    CategoryData,
    Shared,
    SharedPart,
    TrainedOn,
    check_weight_file,
    read_trained_on,
)
from mmad_bank.methods.verdicts import ModelCalibration, check_rate_for

AnyMethod = TypeVar("AnyMethod", bound="Method")
__all__ = ["MANIFEST", "Method", "Parameter", "Part", "Prediction", "Reason", "Samples", "read_manifest"]
BUNDLED: Mapping[str, Any] = {"rgb": BUNDLED_RGB, "rgb_weights": PRETRAINED, "xyz": "fpfh", "reweight": "top"}
"""Arguments for extractors whose weights come with a package, or that have none: nothing is downloaded; and the rule of
the image score that suits them."""
_AT_ONCE = 8  # samples of a list that are scored together


class Method(MethodOptions, ABC):
    """A detector of anomalies.

    A method is a keyword-only dataclass: its fields are the constructor's arguments, kept as attributes of the same
    names (lists as tuples, paths as text); :func:`mmad_bank.methods.parameters` tells about them. What is learnt ends
    in an underscore. A class with a constructor that is written out works too; it calls ``self._begin()`` last.

    Attributes:
        train_ids_: Ids of the samples that the method was fitted on, in order.
        skipped_: Reasons why training or validation samples could not be used, by id.
        preprocessing_: Preprocessing of every sample.
        map_scale_: The colour scale of the maps, measured on normal images; None where they were too few, and in models
            that older versions saved.
        calibration_: Scores of normal images that were held out, from which verdicts follow; None where there were
            none, with ``calibration="none"``, and in models that older versions saved.
        calibrated_: The scales of the parts' scores of held-out normal images, by which ``decision="calibrated"`` fuses
            them; None where none were held out, and for a method of one part.
        categories_: The categories of those samples, sorted; empty where they named none.
        frames_: Frames of those samples in their pictures, in order; None where one is not known.
        trained_on_: What the :attr:`shareable` parts were trained on, by their names; parts of files that do not say
            are missing.
        roi_: Region of interest of the data set that it was fitted on, which counts for every sample; None for all.
    """

    name: ClassVar[str]
    """Name in a model's folder and on the command line."""
    preparation: ClassVar[str] = "m3dm"
    """Recipe of preprocessing MVTec 3D-AD that the method takes, see :class:`mmad_bank.data.Preprocessing`."""
    bundled: ClassVar[Mapping[str, Any]] = {}
    """Arguments that suit the bundled extractors and small data sets, beside :data:`BUNDLED`."""

    prediction_arguments: ClassVar[frozenset[str]] = frozenset()
    """Constructor arguments that :meth:`fit` does not depend on; :meth:`with_arguments` changes them."""

    has_cheap_folds: ClassVar[bool] = False
    """Whether ``calibration="auto"`` may take folds: a fold needs no training."""

    shareable: ClassVar[tuple[SharedPart, ...]] = ()
    """Parts that one training can make for several categories, in the order in which they are learnt."""

    _trust_index: bool = False  # whether FAISS may read the indices of the banks that are loaded

    train_ids_: list[str]
    skipped_: dict[str, str]
    preprocessing_: Preprocessing | None
    map_scale_: MapScale | None
    calibration_: ModelCalibration | None
    calibrated_: CalibratedFusion | None
    categories_: list[str]
    frames_: list[Frame | None]
    trained_on_: dict[str, TrainedOn]
    roi_: RegionOfInterest | None

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """Make an unfitted method of stored arguments (a constructor that is written out calls it last)."""
        check_parameters(self)
        self._check_arguments()
        self.train_ids_, self.skipped_, self.preprocessing_, self.map_scale_ = [], {}, None, None
        self.calibration_, self.calibrated_ = None, None
        self.categories_, self.frames_, self.trained_on_, self.roi_ = [], [], {}, None
        self._shared: Shared | None = None
        self._of_parts = None if self.views is None else FitParts(ViewPattern(self.views))

    def _check_arguments(self) -> None:
        """Refuse arguments that do not go together; each by itself has been checked against its declaration."""

    # The interface.

    def fit(
        self: AnyMethod,
        dataset: Samples,
        *,
        validation: Samples | None = None,
        workdir: str | os.PathLike[str] | None = None,
        progress: bool = False,
        shared: Shared | None = None,
    ) -> AnyMethod:
        """Learn what is normal.

        Args:
            dataset: Normal samples, usually a category's training split: a data set, a list of samples or of pictures'
                files, or PyTorch's ``Subset``, ``ConcatDataset`` or ``DataLoader`` of those. Raw ones are preprocessed
                on the way, prepared ones (:func:`mmad_bank.data.prepare`) are taken as they are; all must have been
                prepared in one way. Samples that cannot be read or used are left out and named in ``skipped_``.
            validation: Normal samples for what is calibrated on data kept out of training, likewise: verdicts (see the
                argument ``calibration``), and some methods' decisions.
            workdir: Folder for what the stages of the training leave. With the same arguments and samples, a later call
                goes on behind the last finished stage, or where the features end that were extracted. Default: a
                temporary folder.
            progress: Whether to show bars on a terminal.
            shared: Parts that were trained on several categories, in place of trainings of their own, see
                :func:`mmad_bank.methods.shared.train_shared`.

        Returns:
            The method itself.

        Raises:
            InputError: No sample can be used, some were prepared otherwise than others, or an argument does not fit the
                data.
            MmadBankError: A training diverged; the message names the step.
        """
        with ExitStack() as stack:
            folder = workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="mmad-bank-fit-"))
            given = self.fitting(dataset, validation, Path(folder), shared, progress)
            samples, held_out, stages = stack.enter_context(given)
            self._check_calibration(self._count(samples), 0 if held_out is None else self._count(held_out))
            self._fit(samples, held_out, stages)
            self._scale_maps(samples, held_out, stages)
            self._calibrate(samples, held_out, stages)
            check_rate_for(self.false_alarm_rate, self.calibration_)
            self.trained_on_ = dict(self._trained_on())
            self.skipped_ |= {} if self._of_parts is None else self._of_parts.left_out
        return self

    @contextmanager
    def fitting(
        self, dataset: Samples, validation: Samples | None, folder: Path, shared: Shared | None, progress: bool
    ) -> Iterator[tuple[Samples, Samples | None, Stages]]:
        """Begin anew, as :meth:`fit` does, and yield what the block fits on and the stages in a folder.

        Raises:
            InputError: There is no sample, or some were prepared otherwise than others.
        """
        self._begin()
        self._shared = shared
        for part in self.shareable:  # before the features, which take longest
            source = self.source_of(part.argument)
            if source not in NO_FILES and self._has(part.name):
                check_weight_file(part.argument, source)
        samples = as_samples(dataset, "dataset")
        if len(samples) == 0:
            raise InputError("dataset: expected normal samples, found none")
        samples = self.suited(samples)
        refuse_missing(samples, self.modalities, self.name, "dataset")
        self.roi_ = region_of(samples, self)
        samples = self._by_part(samples, "dataset")
        self.preprocessing_ = self._choose_preprocessing(samples)
        held_out = self._held_out(validation, self._count(samples))
        own = self._fingerprint(samples, held_out)
        own |= {} if shared is None else {"shared": shared.identity}
        # Seeded, so that random extractors are the same when a fit is resumed.
        with plain_torch(), seeded(self.seed):
            yield samples, held_out, Stages(folder, own, progress=progress)

    def _by_part(self, samples: Samples, name: str) -> Samples:
        """Return samples part after part, without those that show no part, if several show one.

        Raises:
            InputError: None shows a part.
        """
        return samples if self._of_parts is None else self._of_parts.sorted(samples, name)

    @property
    def _unit(self) -> str:
        """Word for what is judged."""
        return IMAGES if self._of_parts is None else PARTS

    def _count(self, samples: Samples | Sequence[str]) -> int:
        """Return how many are judged of samples, or of those with some ids: images, or parts if several show one."""
        return len(samples) if self._of_parts is None else self._of_parts.count(_ids(samples))

    def _groups(self, samples: Samples | Sequence[str]) -> list[str] | None:
        """Return the parts that samples, or those with some ids, show: no fold cuts one; None where there are none."""
        return None if self._of_parts is None else [one.part for one in self._of_parts.of(_ids(samples)).views]

    def parts_to_train(self) -> tuple[SharedPart, ...]:
        """Return those of the :attr:`shareable` parts that :meth:`fit` trains with these arguments.

        Example:
            >>> from mmad_bank.methods import M3DM
            >>> [part.name for part in M3DM().parts_to_train()]
            ['uff']
            >>> M3DM(banks=("xyz", "rgb")).parts_to_train()
            ()
        """
        return tuple(part for part in self.shareable if getattr(self, part.argument) == TRAIN and self._has(part.name))

    def _has(self, part: str) -> bool:
        """Say whether the method has a part, with these arguments."""
        del part
        return True

    def source_of(self, argument: str) -> str:
        """Return where a shareable part comes from: what its argument says, or the file of a shared training.

        Args:
            argument: Constructor argument of the part.
        """
        own = str(getattr(self, argument))
        return self._shared.files.get(argument, own) if self._shared is not None and own == TRAIN else own

    def features_of(self, part: str) -> str:
        """Name the extractors whose features a shareable part is trained on; empty where it looks at none."""
        del part
        return ""

    def _trained_on(self) -> Iterator[tuple[str, TrainedOn]]:
        """Yield what is known of the trainings of the parts of a fitted method."""
        for part in filter(lambda one: self._has(one.name), self.shareable):
            source = self.source_of(part.argument)
            own = TrainedOn(len(self.train_ids_), tuple(self.categories_), self.features_of(part.name))
            found = own if source == TRAIN else read_trained_on(source)
            if found is not None:
                yield part.name, found

    @property
    def calibration_outdated(self) -> bool:
        """Whether a bank was extended since the model was calibrated: too few images are called bad then."""
        return False

    @property
    def uses_validation(self) -> bool:
        """Whether :meth:`fit` looks at validation samples."""
        return self.needs_validation or self.calibration in ("auto", "validation")

    @property
    def needs_validation(self) -> bool:
        """Whether :meth:`fit` learns something else without validation samples than with them, beside verdicts."""
        return False

    @property
    def memory_banks(self) -> Mapping[str, MemoryBank]:
        """The memory banks of a fitted method, by the parts that they score; none for a method without banks.

        Example:
            >>> {name: len(bank) for name, bank in model.memory_banks.items()}  # doctest: +SKIP
            {'xyz': 76518, 'rgb': 7652, 'fusion': 7652}
        """
        return {}

    @property
    def takes_roi(self) -> bool:
        """Whether it can leave out what lies outside a region of interest."""
        return False

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities of a sample that the method looks at: ``"rgb"``, ``"xyz"``, or both."""
        return frozenset({"rgb", "xyz"})

    @overload
    def predict(self, sample: list[Any] | SampleDataset, *, force: bool = False) -> list[Prediction]: ...

    @overload
    def predict(self, sample: Input, *, force: bool = False) -> Prediction: ...

    def predict(self, sample: Any, *, force: bool = False) -> Prediction | list[Prediction]:
        """Score a sample, or several.

        Args:
            sample: A :class:`mmad_bank.data.Sample`; a pair ``(rgb, xyz)`` of files, arrays or tensors; a picture
                alone, whose point cloud lies beside it as in a data set (``.../rgb/NAME.png``, ``.../xyz/NAME.tiff``)
                or is not needed; a file of points alone (PCD, PLY); or a list (or data set) of those. Pictures are
                (H, W, 3) or (3, H, W), clouds likewise.
            force: Whether to score data that the model was not made for too, see :meth:`objections`; the prediction's
                ``notes`` say so.

        Returns:
            A prediction; for a list, one of each.

        Raises:
            InputError: Nothing is fitted, or a sample cannot be used; the line names it and says what was expected.

        Example:
            >>> model.predict("parts/bagel/test/hole/rgb/003.png").score  # doctest: +SKIP
            1.84
            >>> model.predict((picture, cloud)).map.shape == picture.shape[:2]  # doctest: +SKIP
            True
        """
        if isinstance(sample, list) or is_dataset(sample):
            several = sample if isinstance(sample, list) else as_samples(sample, "sample")
            return [
                one
                for first in range(0, len(several), _AT_ONCE)
                for one in self.predict_batch(
                    [several[i] for i in range(first, min(first + _AT_ONCE, len(several)))], force=force
                )
            ]
        return self.predict_batch([sample], force=force)[0]

    def predict_batch(self, samples: Sequence[Input], *, force: bool = False) -> list[Prediction]:
        """Score samples together.

        Several threads may predict with one method at a time. Autocast, inference mode and the default dtype of the
        caller change nothing: everything is float32 here but what ``compute_dtype`` says.

        Args:
            samples: Raw or prepared ones, or what :meth:`predict` takes in place of a sample.
            force: Whether to score data that the model was not made for too, as in :meth:`predict`.

        Returns:
            One prediction per sample, in their order; the same as one by one, up to rounding.

        Raises:
            InputError: Nothing is fitted, or a sample cannot be used.
        """
        self.check_fitted()
        if not samples:
            return []
        with plain_torch(), torch.no_grad():
            with timed(sections.PREPROCESSING):
                given = [self._as_sample(sample) for sample in samples]
                prepared = [self.prepare(sample, force=True) if force else self.prepare(sample) for sample in given]
            predictions = [self._rescaled(one) for one in self._predict(prepared)]
        notes = [tuple(self.objections(sample)) if force else () for sample in given]
        return [
            replace(
                prediction,
                given=own,
                notes=(*prediction.notes, *words),
                calibration=self.calibration_,
                false_alarm_rate=self.false_alarm_rate,
            )
            for prediction, own, words in zip(predictions, given, notes, strict=True)
        ]

    @property
    def _on_one_scale(self) -> bool:
        """Whether the decision is over several parts, on the scale of held-out images."""
        return getattr(self, "decision", "") == CALIBRATED and bool(self._parts_of_decision())

    def _parts_of_decision(self) -> tuple[str, ...]:
        """Name the parts that a decision is over; none where there is only one."""
        return ()

    def _rescaled(self, prediction: Prediction) -> Prediction:
        """Fuse the parts of a prediction on the scale of held-out images, if the method's decision is that."""
        if not self._on_one_scale or self.calibrated_ is None:
            return prediction
        return fused_on_one_scale(prediction, self.calibrated_)

    def _as_sample(self, value: Input) -> Sample:
        """Read what was given in place of a sample."""
        assert self.preprocessing_ is not None
        by_cloud = self.preprocessing_.background != "keep" or self.preprocessing_.eps is not None
        return to_sample(value, needs_cloud=by_cloud or "xyz" in self.modalities)

    def objections(self, data: Sample | Samples) -> list[str]:
        """Say why this model was not made for a sample or a data set, a line for each reason; nothing is read for it.

        Data prepared with other settings than those it was fitted on, and data of other categories, are scored only
        with ``force``. Samples that name no category are of any.

        Args:
            data: A sample, a data set, or a list of samples.

        Example:
            >>> model.objections(open_dataset("parts", "rope", "test"))  # doctest: +SKIP
            ['of category rope, while the model was fitted on bagel']
        """
        self.check_fitted()
        assert self.preprocessing_ is not None
        samples = [data] if isinstance(data, Sample) else as_samples(data, "dataset")
        return objections_to(samples, self.preprocessing_, self.categories_)

    def suited(self, data: Samples, name: str = "dataset") -> Samples:
        """Return samples as the method can take them; :meth:`fit` and :func:`mmad_bank.evaluation.evaluate` do so.

        A method that needs of the pictures what a preparation has removed takes the raw samples instead.

        Args:
            data: A data set, or a list of samples.
            name: Name of the data, for the error's line.

        Returns:
            These samples, or the raw ones that they were prepared from, in the same order.

        Warns:
            UserWarning: The raw ones are taken.

        Raises:
            InputError: They would be needed, and are not at hand.
        """
        del name
        return data

    def check(self, data: Sample | Samples, name: str = "dataset") -> None:
        """Refuse data that the model was not made for.

        Args:
            data: Data, as in :meth:`objections`.
            name: Name of the data, for the error's line.

        Raises:
            InputError: There is an objection, or the data lack pictures or point clouds that the method looks at.
        """
        samples = data if isinstance(data, Sample) else as_samples(data, "dataset")
        refuse_missing(samples, self.modalities, self.name, name)
        for line in self.objections(samples):
            raise InputError(f"{name}: {line}; force=True (--force) scores it all the same")

    def with_arguments(self: AnyMethod, **changes: Any) -> AnyMethod:
        """Return a fitted method with other arguments for prediction, which shares what this one has learnt.

        Nothing is learnt anew, and both can be used side by side. The color scale of maps and the calibration are not
        kept (``map_scale_`` and ``calibration_`` are None) with arguments that make other scores.

        Args:
            changes: Some of :attr:`prediction_arguments`, or ``false_alarm_rate``, with their new values.

        Raises:
            InputError: Nothing is fitted; an argument is none of these or out of its range; or what was learnt is not
                enough for it.

        Example:
            >>> from mmad_bank.methods import CFM
            >>> sorted(CFM.prediction_arguments)
            ['aggregation', 'decision', 'normalize_for', 'runtime', 'sigma']
            >>> cfm.with_arguments(aggregation="sum").predict(sample).score  # doctest: +SKIP
            0.42
        """
        self.check_fitted()
        allowed = self.prediction_arguments | {"false_alarm_rate"}
        for name in changes:
            if name not in allowed:
                known = f"one of {', '.join(sorted(allowed))}" if allowed else "none"
                kind = type(self).__name__
                raise InputError(f"{name}: expected {known}; for any other argument {kind} is fitted anew")
        other = type(self)(**{**self.arguments(), **changes})
        vars(other).update({name: value for name, value in vars(self).items() if name.endswith("_")})
        if set(changes) - VERDICT_ARGUMENTS:
            other.map_scale_ = other.calibration_ = None
            if "false_alarm_rate" not in changes:
                other.false_alarm_rate = None  # there are no verdicts any more
        if changes.get("decision") == CALIBRATED and self.calibrated_ is None:
            raise InputError(NOTHING_HELD_OUT)
        other._keep_own(self)
        check_rate_for(other.false_alarm_rate, other.calibration_)
        return other

    def explain(
        self, prediction: Prediction, part: str | None = None, *, place: tuple[int, int] | None = None, n: int = 4
    ) -> list[Reason]:
        """Name the normal patches that are nearest to a patch of a predicted image.

        Args:
            prediction: Prediction of this method.
            part: The bank to look in; default: the first.
            place: (row, column) in the part's grid; default: where its score is highest.
            n: Largest number of patches, nearest first.

        Returns:
            Nothing for a method or part without a bank.

        Raises:
            InputError: There is no such part, the place is none of its grid, or padding, or ``n`` is below 1.
        """
        self.check_fitted()
        check_explained(prediction, part, place, n, tuple(prediction.parts))
        return []

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the method to a folder of safetensors and JSON, complete or not at all.

        A model that is there already is replaced, in one step. ``model.json`` keeps a checksum of each file (banks have
        checksums of their own), which :meth:`load` compares.

        Raises:
            InputError: Nothing is fitted, the folder holds something else, it cannot be written, or the disk is full.
        """
        self.check_fitted()
        assert self.preprocessing_ is not None
        facts = {
            "method": self.name, "arguments": self.arguments(), "preprocessing": self.preprocessing_.as_json(),
            "train_ids": self.train_ids_, "skipped": self.skipped_,
            "map_scale": self.map_scale_ and self.map_scale_.as_json(),
            "calibration": self.calibration_ and self.calibration_.as_json(),
            "calibrated": self.calibrated_ and self.calibrated_.as_json(), "categories": self.categories_,
            "frames": pack_frames(self.frames_),
            "trained_on": {name: one.as_json() for name, one in self.trained_on_.items()},
            **({} if self.roi_ is None else {"roi": self.roi_.as_json()}),
        }  # fmt: skip
        write_model(folder, facts, self._save)

    @classmethod
    def load(
        cls: type[AnyMethod],
        folder: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        trust_index: bool = False,
    ) -> AnyMethod:
        """Read what :meth:`save` wrote, see :func:`mmad_bank.methods.load`."""
        return read_folder(folder, lambda: cls._read(Path(folder), str(device), trust_index))

    @classmethod
    def _read(cls: type[AnyMethod], folder: Path, device: str, trust_index: bool) -> AnyMethod:
        content = read_manifest(folder)
        if content["method"] != cls.name:
            raise FormatError(f"{folder}: expected a saved {cls.name}, found a saved {content['method']}")
        with decoding(folder, "altered or of another version, it cannot be read", error=FormatError):
            check_sizes(content["preprocessing"], str(folder / MANIFEST))
            verify_files(folder, content.get("files", {}))
            with plain_torch(), blaming_manifest(folder):
                method = cls._for_loading(content["arguments"], device)
                method._begin()
                method._trust_index = trust_index
                method._restore(content)
                method._load(folder, content["learnt"])
                method._check_decision()
                check_rate_for(method.false_alarm_rate, method.calibration_)
        return method

    def _restore(self, content: Mapping[str, Any]) -> None:
        """Take back what a manifest says of the training data; older ones say less of them."""
        self.preprocessing_ = Preprocessing(**content["preprocessing"])
        self.train_ids_ = [str(name) for name in content["train_ids"]]
        self.skipped_ = {str(name): str(why) for name, why in content["skipped"].items()}
        known = content.get("categories", [category_of(name) for name in self.train_ids_])
        self.categories_ = sorted({str(name) for name in known} - {""})
        scale = content.get("map_scale")
        with inside("map_scale"):
            self.map_scale_ = None if scale is None else MapScale.from_json(scale)
        known = content.get("calibration")
        with inside("calibration"):
            self.calibration_ = None if known is None else ModelCalibration.from_json(known)
        known = content.get("calibrated")
        with inside("calibrated"):
            self.calibrated_ = None if known is None else CalibratedFusion.from_json(known)
        self.frames_ = unpack_frames(content["frames"], len(self.train_ids_)) if "frames" in content else []
        known = content.get("trained_on", {})
        self.trained_on_ = {str(name): TrainedOn.from_json(one, MANIFEST) for name, one in known.items()}
        self.roi_ = RegionOfInterest.from_json(content["roi"]) if "roi" in content else None

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, as they were given."""
        return {name: getattr(self, name) for name in self.argument_names()}

    @classmethod
    def argument_names(cls) -> tuple[str, ...]:
        """Name the constructor's arguments, in its order.

        Example:
            >>> from mmad_bank.methods import PatchCore
            >>> PatchCore.argument_names()[:2]
            ('rgb', 'rgb_weights')
        """
        return tuple(inspect.signature(cls).parameters)

    @classmethod
    def parameters(cls) -> list[Parameter]:
        """Describe the constructor's arguments, in its order; see :func:`mmad_bank.methods.parameters`."""
        return parameters_of(cls, FORMER_NAMES)

    @classmethod
    def bundled_arguments(cls) -> dict[str, Any]:
        """Return the arguments for the bundled extractors that the constructor takes: nothing is downloaded.

        Example:
            >>> from mmad_bank.methods import PatchCore
            >>> PatchCore.bundled_arguments()["rgb"]
            'efficientnet_lite2.reflect'
        """
        names = cls.argument_names()
        return {**{name: value for name, value in BUNDLED.items() if name in names}, **cls.bundled}

    def prepare(self, sample: Sample, *, force: bool = False) -> Sample:
        """Preprocess a sample as those that the method was fitted on, unless that has been done.

        Args:
            sample: A raw or a prepared one.
            force: Whether to take one that the model was not made for too, see :meth:`objections`. Its size must fit
                all the same.

        Raises:
            InputError: Nothing is fitted, the sample cannot be used, or the model was not made for it.
        """
        if self.preprocessing_ is None:
            raise InputError(f"{type(self).__name__}: not fitted; call fit or load first")
        if not isinstance(sample, Sample):
            raise InputError(f"sample: expected a Sample, found {type(sample).__name__}")
        refuse_missing(sample, self.modalities, self.name, name_of(sample))
        if not force and self.train_ids_:
            self.check(sample, name_of(sample))
        return prepare_as(sample, self.preprocessing_, self.image_size)

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        chosen = [
            f"{name}={getattr(self, name)!r}"
            for name, one in defaults.items()
            if getattr(self, name, one.default) != one.default
        ]
        fitted = "not fitted"
        if self.preprocessing_ is not None and self.train_ids_:
            of = f" of {', '.join(self.categories_)}" if self.categories_ else ""
            fitted = "; ".join([f"fitted on {len(self.train_ids_)} images{of}", *self._facts()])
        return f"<{type(self).__name__}({', '.join(chosen)}): {fitted}>"

    def _facts(self) -> list[str]:
        """Say of a fitted method what its representation shows beside the training data."""
        return []

    def prepare_for_training(self, sample: Sample) -> Sample:
        """Preprocess a sample of a training; one prepared otherwise than the others ends it.

        Raises:
            InputError: The sample cannot be used.
            OtherPreparation: It was prepared otherwise.
        """
        assert self.preprocessing_ is not None
        if isinstance(sample, Sample):
            refuse_other_preparation(sample, self.preprocessing_)
        return self.prepare(sample)

    # What a method defines.

    @abstractmethod
    def _fit(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        """Learn, in stages that can be resumed; fills ``train_ids_`` and ``skipped_``."""

    def training_data(self, dataset: Samples, stages: Stages) -> CategoryData:
        """Make, as stages of a category's fit, what :meth:`learn_parts` learns from.

        A method with :attr:`shareable` parts defines it.

        Raises:
            InputError: No sample can be used.
        """
        raise NotImplementedError

    def learn_parts(self, members: Sequence[CategoryData], stages: Stages) -> None:
        """Learn the :attr:`shareable` parts, from the data of the one category of a fit or of several.

        Args:
            members: Data of each category.
            stages: Stages that the trainings' states go to.
        """

    def _scale_maps(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        """Measure the colour scale on some of the validation samples, or of the training samples if there are none.

        Samples that cannot be used are left out.
        """
        held_out = validation is not None and len(validation) > 0
        samples = validation if validation is not None and held_out else dataset

        def maps() -> Iterator[dict[str, Tensor]]:
            for number in spread(len(samples)):
                with suppress(MmadBankError):
                    sample = samples[number]
                    if not sample.label:  # the training left it out as well
                        prediction = self.predict_batch([sample])[0]
                        maps = prediction.prepared_maps()
                        yield {name: picture_of(one, prediction.sample.frame) for name, one in maps.items()}

        origin = "validation images" if held_out else "training images, which the method was fitted on"
        self.map_scale_ = scale_by_stage(maps(), origin, len(samples), stages)

    def _calibrate(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        """Score held-out normal samples for the verdicts."""
        refit, given = partial(self._refitted, validation=validation), [] if validation is None else validation
        way, kept = self._way_and_kept(dataset, given, lambda: (marks_of(given), marks_of(dataset)))
        held_out = some_of(given, numbers_of(kept)) if way == "validation" else None
        found = calibrate_by_predicting(
            self, refit, dataset, held_out, stages, way=way, groups=self._groups(dataset), parts=self._of_parts,
            one_scale=self._on_one_scale,
        )  # fmt: skip
        self.calibration_, self.calibrated_ = found.calibration, found.fusion

    def _check_calibration(self, n_train: int, n_validation: int) -> None:
        """Refuse, before the work, a false-alarm rate that so many images, or parts, cannot give."""
        way = self._way(n_train, n_validation)
        if way is None and self._on_one_scale:
            raise InputError(NOTHING_HELD_OUT)
        if way is None and self.false_alarm_rate is not None:
            raise InputError(
                "false_alarm_rate: expected validation samples, or calibration='folds', which fits the method"
                f" {self.calibration_folds} times more; found neither"
            )
        check_promise(self.false_alarm_rate, n_validation if way == "validation" else n_train, self._unit)

    def _check_decision(self) -> None:
        """Refuse a model whose decision is that on one scale, and which does not know the scales of its parts.

        Raises:
            FormatError: It is one.
        """
        if not self._on_one_scale:
            return
        known = set() if self.calibrated_ is None else set(self.calibrated_.images)
        if known != set(self._parts_of_decision()):
            raise FormatError(f"{MANIFEST}: expected scales of {', '.join(self._parts_of_decision())}, found others")

    def _way(self, n_train: int, n_validation: int) -> str | None:
        """Choose what verdicts are calibrated on; a scale of several parts needs fewer images than they do."""
        least = 1 if self._on_one_scale else LEAST
        folds, unit = self.has_cheap_folds, self._unit
        return way_of(self.calibration, n_train, n_validation, folds=folds, least=least, unit=unit)

    def _way_and_kept(
        self,
        train: Samples | Sequence[str],
        validation: Samples | Sequence[str],
        marks: Callable[[], tuple[Sequence[Mark], Sequence[Mark]]],
    ) -> tuple[str | None, list[slice]]:
        """Choose what verdicts are calibrated on, and runs of the validation samples that are no training samples.

        Args:
            train: Training samples, or their ids.
            validation: Validation samples, or their ids; empty for none.
            marks: Gives the marks of the validation samples and of the training samples, if they are needed.

        Raises:
            InputError: The decision is on one scale, and nothing is held out.
        """
        n_train, kept = self._count(train), list[slice]()
        way = self._way(n_train, self._count(validation))
        if way == "validation":
            own, others = marks()
            kept = not_among(own, others, self.modalities)
            names = _ids(validation)
            way = self._way(n_train, self._count([names[number] for number in numbers_of(kept)]))
        if way is None and self._on_one_scale:
            raise InputError(NOTHING_HELD_OUT)
        return way, kept

    def _refitted(self: AnyMethod, dataset: Samples, folder: Path, *, validation: Samples | None) -> AnyMethod:
        """Fit the same method on other samples."""
        other = type(self)(**{**self.arguments(), "calibration": "none", "false_alarm_rate": None, "views": None})
        with other.fitting(dataset, validation, folder, self._shared, False) as given:
            other._fit(*given)
        return other

    def _keep_own(self, fitted: AnyMethod) -> None:
        """Keep of what a fitted method has learnt, which this one has been given, what the own arguments ask for.

        Raises:
            InputError: They ask for more.
        """

    @abstractmethod
    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        """Score prepared samples."""

    @abstractmethod
    def _save(self, folder: Path) -> dict[str, Any]:
        """Write what was learnt into a folder that is there and empty; return what goes into the manifest."""

    @abstractmethod
    def _load(self, folder: Path, learnt: dict[str, Any]) -> None:
        """Read what :meth:`_save` wrote."""

    @classmethod
    def _for_loading(cls: type[AnyMethod], arguments: dict[str, Any], device: str) -> AnyMethod:
        """Make the method anew on a device."""
        return cls(**{**arguments, "device": device})

    def _choose_preprocessing(self, samples: Samples) -> Preprocessing:
        """Return how the samples were prepared, or, where they are raw, how they will be."""
        return preprocessing_of(samples, self.preparation, self.image_size)

    def _held_out(self, validation: Samples | None, n_train: int) -> Samples | None:
        """Return the validation samples, if there are some and they are of use beside so many training samples."""
        if validation is None or not self.uses_validation:
            return None
        validation = self._by_part(as_samples(validation, "validation"), "validation")
        n_validation = self._count(validation)
        if not self.needs_validation and self._way(n_train, n_validation) != "validation":
            return None
        assert self.preprocessing_ is not None
        return held_out(self.suited(validation, "validation"), self.preprocessing_)

    def check_fitted(self) -> None:
        """Refuse a method that is neither fitted nor loaded.

        Raises:
            InputError: It is not.
        """
        if self.preprocessing_ is None or not self.train_ids_:
            raise InputError(f"{type(self).__name__}: not fitted; call fit or load first")

    def fingerprint_on(self, dataset: Samples) -> dict[str, Any]:
        """Say what a fit on samples would depend on, JSON-able; the method stays as it is.

        Raises:
            InputError: Some samples were prepared otherwise than others.
        """
        own = type(self)(**self.arguments())
        samples = own._by_part(own.suited(as_samples(dataset, "dataset")), "dataset")
        own.preprocessing_ = own._choose_preprocessing(samples)
        return own._fingerprint(samples, None)

    def _preparing(self: AnyMethod, samples: Samples) -> AnyMethod:
        """Return the same method, not fitted, that prepares samples as a fit on these would; this one stays as it is.

        Raises:
            InputError: Some samples were prepared otherwise than others.
        """
        own = type(self)(**self.arguments())
        own.preprocessing_ = own._choose_preprocessing(samples)
        return own

    def _fingerprint(self, dataset: Samples, validation: Samples | None) -> dict[str, Any]:
        """Say what the stages' results depend on."""
        assert self.preprocessing_ is not None
        region = region_of(dataset, self)
        own = {} if region is None else {"roi": json.loads(json.dumps(region.as_json()))}
        return fingerprint(self.name, self.arguments(), (dataset, validation), self.preprocessing_) | own


def _ids(samples: Samples | Sequence[str]) -> list[str]:
    """Return the ids of samples, or these if that is what was given."""
    if isinstance(samples, (list, tuple)) and all(isinstance(one, str) for one in samples):
        return list(samples)
    return [name for name, _ in named(cast("Samples", samples))]
