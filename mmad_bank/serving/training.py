"""Training images, from which the normal patches that explain a score are shown."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmad_bank.errors import MmadBankError

if TYPE_CHECKING:
    from mmad_bank.data import Sample
    from mmad_bank.data.dataset import SampleDataset
    from mmad_bank.methods import Method, Prediction

_AGAIN = 30.0  # seconds after which data in which an image was not found are listed again


@dataclass(frozen=True)
class _Listed:
    """The training images of a model."""

    dataset: SampleDataset
    places: dict[str, int]


class TrainingImages:
    """The training images of models, found by their names.

    Args:
        data: Folder of the data: that of a model by its name, ``data/MODEL``, or else all of it.
        warn: Function that is told the name of a model whose data cannot be opened, and why.
    """

    def __init__(self, data: Path, warn: Callable[[str, str], None]) -> None:
        self._data, self._warn = data, warn
        self._listed: dict[str, _Listed | None] = {}
        self._tried: dict[str, float] = {}
        self._lock = threading.Lock()

    def find(self, model: str, method: Method, sample_id: str) -> Sample | None:
        """Return a training image, prepared as the method does; None if it is not there or cannot be used.

        Args:
            model: Name of the model in the service.
            method: The model.
            sample_id: The image's name, as the model's banks have it.
        """
        listed = self._listing(model, method, sample_id)
        if listed is None or sample_id not in listed.places:
            return None
        try:
            return method.prepare(listed.dataset[listed.places[sample_id]])
        except MmadBankError:
            return None

    def _listing(self, model: str, method: Method, sample_id: str) -> _Listed | None:
        with self._lock:
            known = self._listed.get(model)
            if known is not None and sample_id in known.places:
                return known
            if time.monotonic() - self._tried.get(model, -_AGAIN) < _AGAIN:
                return known
            self._tried[model] = time.monotonic()
            self._listed[model] = found = self._open(model, method)
            return found

    def _open(self, model: str, method: Method) -> _Listed | None:
        from mmad_bank.data import open_dataset

        own = self._data / model
        place = own if own.is_dir() else self._data
        try:
            try:
                dataset = open_dataset(place)
            except MmadBankError:  # pictures in no layout, with names that look like defects' among them
                dataset = open_dataset(place, layout="pictures")
            raw = dataset.preparation is None  # its manifest is read here, and may be damaged
        except MmadBankError as error:
            self._warn(model, str(error))
            return None
        recipe = method.preprocessing_
        if recipe is not None and raw:
            dataset.units = recipe.units or dataset.units
        return _Listed(dataset, {record.id: at for at, record in enumerate(dataset.records)})


def with_crops(
    said: Mapping[str, Any], model: str, method: Method, prediction: Prediction, part: str,
    training: TrainingImages | None, until: float,
) -> dict[str, Any]:  # fmt: skip
    """Return a part's explanation with its patches as PNGs in base64, ``png``; None where an image is not there.

    An image is read once for all of its patches, one image after the other: there may be a hundred, and large ones.

    Args:
        said: The explanation, as :func:`mmad_bank.methods.described.explanation_of` words it.
        model: Name of the model in the service.
        method: The model.
        prediction: What it says of the picture.
        part: Name of the part.
        training: Training images.
        until: Time of ``time.perf_counter`` when nobody waits for the answer any more; no image is read after it.
    """
    from mmad_bank.report.pictures import encoded, patch_crop, shows_depth

    grid, depth = prediction.parts[part].grid, shows_depth(part, prediction.sample)

    def crop(image: Sample, place: tuple[int, int]) -> str:
        return base64.b64encode(encoded(patch_crop(image, place, grid, depth))).decode()

    nearest = [{**one, "png": None} for one in said["nearest_normal_patches"]]
    by_image: dict[str, list[dict[str, Any]]] = {}
    for one in nearest:
        if one["sample"] is not None and one["place"] is not None:
            by_image.setdefault(one["sample"], []).append(one)
    for sample_id, patches in by_image.items():
        if training is None or time.perf_counter() > until:
            break
        image = training.find(model, method, sample_id)
        for one in patches:
            one["png"] = None if image is None else crop(image, one["place"])
    return {**said, "png": crop(prediction.sample, said["worst_patch"]), "nearest_normal_patches": nearest}
