"""The interface of all methods: fit on normal samples, predict a score and a map, save to a folder, load from it."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from mmad_bank._decoding import decoding
from mmad_bank._files import read_folder, replacing_folder
from mmad_bank._stages import Stages
from mmad_bank._timing import timed
from mmad_bank._training import seeded
from mmad_bank.data.preprocessing import Preprocessing, preprocess
from mmad_bank.data.sample import Sample, SampleDataset, check_sample
from mmad_bank.errors import FormatError, InputError, MmadBankError
from mmad_bank.methods._manifest import (
    FORMAT,
    MANIFEST,
    VERSION,
    check_replaceable,
    check_sizes,
    checksum_of,
    describe_files,
    read_manifest,
    verify_files,
)
from mmad_bank.methods._scale import FUSED, MapScale, measure_scale, spread
from mmad_bank.scoring import anomaly_map

AnyMethod = TypeVar("AnyMethod", bound="Method")
Samples = SampleDataset | Sequence[Sample]


@dataclass(frozen=True)
class Part:
    """What one bank or branch of a method says of an image, before the parts are fused.

    Attributes:
        score: Of the image.
        scores: (h, w) float32 on the CPU: of the patches, or of the pixels.
        nearest: (h, w) int64, the bank row that is nearest to each patch; None for a method without banks.
    """

    score: float
    scores: Tensor
    nearest: Tensor | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the scores."""
        return int(self.scores.shape[0]), int(self.scores.shape[1])

    @property
    def worst(self) -> tuple[int, int]:
        """(row, column) of the highest score."""
        row, column = divmod(int(self.scores.argmax()), self.grid[1])
        return row, column

    def map(self, size: tuple[int, int], sigma: float = 4.0) -> Tensor:
        """Return the scores as an anomaly map (H, W), see :func:`mmad_bank.scoring.anomaly_map`."""
        return anomaly_map(self.scores.reshape(1, -1), self.grid, size, sigma)[0]


@dataclass(frozen=True)
class Prediction:
    """What a method says of a sample.

    Attributes:
        score: Of the image; larger is more anomalous.
        map: (S, S) float32 on the CPU: of every pixel of the prepared image.
        sample: The sample after preprocessing: the frame of ``map``, with the mask brought to it.
        parts: By bank or branch, what was fused.
    """

    score: float
    map: Tensor
    sample: Sample
    parts: Mapping[str, Part] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map in pixels."""
        return int(self.map.shape[0]), int(self.map.shape[1])


@dataclass(frozen=True)
class Reason:
    """A normal patch that explains a score.

    Attributes:
        sample: The id of the training sample that it was taken from; None if that is not known.
        place: (row, column) of the patch in the training image's patch grid; None if that is not known.
        distance: To the patch that is explained, in the unit of the patch scores.
    """

    sample: str | None
    place: tuple[int, int] | None
    distance: float


class Method(ABC):
    """A detector of anomalies.

    Constructor arguments are kept unchanged as attributes of the same names and are JSON-able; what is learnt ends in
    an underscore.

    Attributes:
        train_ids_: Ids of the samples that the method was fitted on, in order.
        skipped_: By id, why a training sample could not be used.
        preprocessing_: What is done to every sample first.
        map_scale_: The colour scale of the maps, measured on normal images; None where they were too few, and in models
            that older versions saved.
    """

    name: ClassVar[str]
    """In a model's folder and on the command line."""
    recipe_of_data: ClassVar[str] = "m3dm"
    """Whose preprocessing of MVTec 3D-AD the method takes, see :class:`mmad_bank.data.Preprocessing`."""
    embedded: ClassVar[Mapping[str, Any]] = {}
    """Arguments that suit the embedded extractors and small data sets, beside :data:`mmad_bank.embedded.EMBEDDED`."""

    image_size: int
    seed: int
    device: str
    _trust_index: bool = False  # whether FAISS may read the indices of the banks that are loaded

    train_ids_: list[str]
    skipped_: dict[str, str]
    preprocessing_: Preprocessing | None
    map_scale_: MapScale | None

    def _begin(self) -> None:
        """Make an unfitted method of stored arguments (constructors call it last)."""
        self.train_ids_, self.skipped_, self.preprocessing_, self.map_scale_ = [], {}, None, None

    # The interface.

    def fit(
        self: AnyMethod,
        dataset: Samples,
        *,
        validation: Samples | None = None,
        workdir: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> AnyMethod:
        """Learn what is normal.

        Args:
            dataset: Normal samples, usually a category's training split; raw ones are preprocessed on the way, prepared
                ones (:func:`mmad_bank.data.prepare`) are taken as they are. Samples that cannot be read or used are
                left out and named in ``skipped_``.
            validation: Normal samples for what is calibrated on data kept out of training.
            workdir: Folder for what the stages of the training leave. With the same arguments and samples, a later call
                goes on behind the last finished stage. Default: a temporary folder.
            progress: Show bars on a terminal.

        Returns:
            The method itself.

        Raises:
            InputError: No sample can be used, or an argument does not fit the data.
            MmadBankError: A training diverged; the message names the step.
        """
        self._begin()
        if len(dataset) == 0:
            raise InputError("dataset: expected normal samples, found none")
        self.preprocessing_ = self._choose_preprocessing(dataset)
        with ExitStack() as stack:
            folder = workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="mmad-bank-fit-"))
            stages = Stages(Path(folder), self._fingerprint(dataset, validation), progress=progress)
            with seeded(self.seed):  # random extractors are the same when a fit is resumed
                self._fit(dataset, validation, stages)
                self._scale_maps(dataset, validation, stages)
        return self

    def predict(self, sample: Sample) -> Prediction:
        """Score one sample, see :meth:`predict_batch`."""
        return self.predict_batch([sample])[0]

    def predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Score samples together.

        Args:
            samples: Raw or prepared ones.

        Returns:
            A prediction a sample, in their order; the same as one by one, up to rounding.

        Raises:
            InputError: Nothing is fitted, or a sample cannot be used.
        """
        self._check_fitted()
        if not samples:
            return []
        with timed("preprocessing"):
            prepared = [self.prepare(sample) for sample in samples]
        return self._predict(prepared)

    def explain(
        self, prediction: Prediction, part: str | None = None, *, place: tuple[int, int] | None = None, n: int = 4
    ) -> list[Reason]:
        """Name the normal patches that are nearest to a patch of a predicted image.

        Args:
            prediction: Of this method.
            part: The bank to look in; default: the first.
            place: (row, column) in the part's grid; default: where its score is highest.
            n: So many patches, nearest first.

        Returns:
            Nothing for a method or part without a bank.
        """
        del prediction, part, place, n
        return []

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the method to a folder of safetensors and JSON, complete or not at all.

        A model that is there already is replaced, in one step. ``model.json`` keeps a checksum of each file (banks have
        checksums of their own), which :meth:`load` compares.

        Raises:
            InputError: Nothing is fitted, the folder holds something else, it cannot be written, or the disk is full.
        """
        self._check_fitted()
        assert self.preprocessing_ is not None
        content = {
            "format": FORMAT, "version": VERSION, "method": self.name, "arguments": self.arguments(),
            "preprocessing": self.preprocessing_.as_json(), "train_ids": self.train_ids_, "skipped": self.skipped_,
            "map_scale": self.map_scale_ and self.map_scale_.as_json(),
        }  # fmt: skip

        check_replaceable(Path(folder))
        with replacing_folder(folder) as into:
            content["learnt"] = self._save(into)
            content["files"] = describe_files(into)
            content["checksum"] = checksum_of(content)
            (into / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")

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
            check_sizes({**content["preprocessing"], **content["arguments"]}, str(folder / MANIFEST))
            verify_files(folder, content.get("files", {}))
            arguments = {key: tuple(x) if isinstance(x, list) else x for key, x in content["arguments"].items()}
            method = cls._for_loading(arguments, device)
            method._begin()
            method._trust_index = trust_index
            method.preprocessing_ = Preprocessing(**content["preprocessing"])
            method.train_ids_ = [str(name) for name in content["train_ids"]]
            method.skipped_ = {str(name): str(why) for name, why in content["skipped"].items()}
            scale = content.get("map_scale")  # older versions measured none
            method.map_scale_ = None if scale is None else MapScale.from_json(scale)
            method._load(folder, content["learnt"])
        return method

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

    def prepare(self, sample: Sample) -> Sample:
        """Preprocess a sample as those that the method was fitted on, unless that has been done.

        Raises:
            InputError: The sample cannot be used, or was prepared otherwise; the message says what differs.
        """
        assert self.preprocessing_ is not None
        if isinstance(sample, Sample) and sample.preparation is None:
            return preprocess(sample, self.preprocessing_)
        sample = check_sample(sample)
        assert sample.preparation is not None
        if sample.size != (self.image_size, self.image_size):
            side, found = self.image_size, "×".join(map(str, sample.size))
            name = sample.rgb_path or sample.id or "sample"
            raise InputError(f"{name}: expected a prepared sample of {side}×{side} pixels (image_size), found {found}")
        differences = sample.preparation.differences(self.preprocessing_)
        if differences:
            name = sample.rgb_path or sample.id or "sample"
            raise InputError(f"{name}: prepared otherwise than what the model was fitted on ({'; '.join(differences)})")
        return sample

    # What a method defines.

    @abstractmethod
    def _fit(self, dataset: Samples, validation: Samples | None, stages: Stages) -> None:
        """Learn, in stages that can be resumed; fills ``train_ids_`` and ``skipped_``."""

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
                        yield self.maps_of(self.predict(sample))

        origin = "validation images" if held_out else "training images, which the method was fitted on"
        self.map_scale_ = self._measured_scale(maps(), origin, len(samples), stages)

    def _measured_scale(
        self, maps: Iterator[Mapping[str, Tensor]], origin: str, n_images: int, stages: Stages
    ) -> MapScale | None:
        """Measure a scale as a stage of the training."""

        def write(path: Path) -> None:
            scale = measure_scale(maps, origin, len(spread(n_images)), progress=stages.progress)
            path.write_text(json.dumps(scale and scale.as_json()))

        content = json.loads(stages.run("map-scale.json", write).read_text())
        return content and MapScale.from_json(content)

    def maps_of(self, prediction: Prediction) -> dict[str, Tensor]:
        """Return the maps (H, W) of a prediction by result: its own, and those of its parts if there are several."""
        parts = prediction.parts if len(prediction.parts) > 1 else {}
        sigma = getattr(self, "sigma", 4.0)
        return {FUSED: prediction.map, **{name: one.map(prediction.size, sigma) for name, one in parts.items()}}

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

    def _choose_preprocessing(self, dataset: Samples) -> Preprocessing:
        preparation = _preparation_of(dataset)
        if preparation is not None:
            return preparation
        layout = getattr(dataset, "layout", "folder")
        recipe = "eyecandies" if layout == "eyecandies" else self.recipe_of_data
        return Preprocessing.recipe(recipe, size=self.image_size)

    def _check_fitted(self) -> None:
        if self.preprocessing_ is None or not self.train_ids_:
            raise InputError(f"{type(self).__name__}: not fitted; call fit or load first")

    def _fingerprint(self, dataset: Samples, validation: Samples | None) -> dict[str, Any]:
        """Say what the stages' results depend on: arguments (not the device), preprocessing and samples."""
        assert self.preprocessing_ is not None
        arguments = {name: value for name, value in self.arguments().items() if name != "device"}
        samples = [_ids(dataset), [] if validation is None else _ids(validation)]
        content = {"method": self.name, "arguments": arguments, "data": samples}
        return json.loads(json.dumps({**content, "preprocessing": self.preprocessing_.as_json()}))


def _preparation_of(dataset: Samples) -> Preprocessing | None:
    """Tell how a data set or a list of samples was prepared; None if it was not.

    Raises:
        InputError: Its samples were prepared in different ways.
    """
    if isinstance(dataset, SampleDataset):
        return dataset.preparation
    first, *others = (getattr(sample, "preparation", None) for sample in dataset)
    for number, other in enumerate(others, 1):
        if (first is None) != (other is None):
            kinds = " and ".join("prepared" if one else "raw" for one in (first, other))
            raise InputError(f"dataset: expected samples prepared in one way, found samples 0 and {number} {kinds}")
        differences = first.differences(other) if first is not None and other is not None else []
        if differences:
            found = f"samples 0 and {number} with {'; '.join(differences)}"
            raise InputError(f"dataset: expected samples prepared in one way, found {found}")
    return first


def _ids(dataset: Samples) -> list[str]:
    """Tell samples apart: a data set's by folder, id and time of change, others by number."""
    if isinstance(dataset, SampleDataset):
        return [f"{dataset.path.resolve()}:{record.id}:{record.changed}" for record in dataset.records]
    return [getattr(sample, "id", "") or str(number) for number, sample in enumerate(dataset)]
