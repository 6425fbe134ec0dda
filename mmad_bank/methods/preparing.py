"""Preparation of samples for a model, and samples that a model was not made for."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.originals import changed_originals, originals_of
from mmad_bank.data.preprocessing import preprocess
from mmad_bank.data.recipes import OtherPreparation, Preprocessing
from mmad_bank.data.sample import Sample, check_sample
from mmad_bank.data.sequences import (
    Samples,
    as_samples,
    categories_of_samples,
    modalities_of_samples,
    preparation_of_samples,
    preparations_of_samples,
    recipe_of_samples,
)
from mmad_bank.errors import InputError


def preprocessing_of(samples: Samples, recipe: str, size: int) -> Preprocessing:
    """Return how training samples were prepared, or, where they are raw, how they will be.

    Args:
        samples: The training samples.
        recipe: The method's, for samples whose data set has none of its own.
        size: Side of a prepared sample, in pixels.

    Raises:
        InputError: Some were prepared otherwise than others.
    """
    preparation = preparation_of_samples(samples, "dataset")
    if preparation is not None:
        return preparation
    own = recipe_of_samples(samples, "dataset") or recipe
    return Preprocessing.recipe(own, size=size, units=getattr(samples, "units", None))


def held_out(validation: Samples, preprocessing: Preprocessing) -> Samples | None:
    """Return validation samples; None if there are none.

    Raises:
        InputError: They were prepared otherwise than the training samples.
    """
    samples = as_samples(validation, "validation")
    if len(samples) == 0:
        return None
    differences = _differences(preparation_of_samples(samples, "validation"), preprocessing)
    if differences:
        raise InputError(f"validation: prepared otherwise than the training samples ({differences})")
    return samples


def objections_to(samples: Samples, preprocessing: Preprocessing, categories: Collection[str]) -> list[str]:
    """Say why samples are none that a model was made for, one line for each reason.

    Args:
        samples: Raw or prepared ones; nothing is read.
        preprocessing: Preprocessing of the samples that the model was fitted on.
        categories: Categories of those samples; empty where they are not known.
    """
    reasons: dict[str, None] = {}
    for preparation in preparations_of_samples(samples):
        differences = _differences(preparation, preprocessing)
        if differences:
            reasons[f"prepared otherwise than what the model was fitted on ({differences})"] = None
    others = categories_of_samples(samples) - set(categories)
    if others and categories:
        own = ", ".join(categories)
        reasons[f"of category {', '.join(sorted(others))}, while the model was fitted on {own}"] = None
    return list(reasons)


_SENSED = {"rgb": "pictures", "xyz": "point clouds"}
_FOR_ONE = {
    "rgb": "patchcore takes these, m3dm with banks=rgb, mdss with branches=rgb, ast with inputs=rgb",
    "xyz": "m3dm takes these with banks=xyz, mdss with branches=xyz, ast with inputs=xyz",
}


def refuse_missing(data: Sample | Samples, needed: Collection[str], method: str, name: str) -> None:
    """Refuse samples that lack what a method looks at.

    Args:
        data: A sample, or several, of which nothing is read.
        needed: Modalities that the method looks at.
        method: Its name, for the error's line.
        name: Name of the data, likewise.

    Raises:
        InputError: A modality is missing.
    """
    given = data.modalities if isinstance(data, Sample) else modalities_of_samples(data)
    if set(needed) <= given:
        return
    wanted = " and ".join(_SENSED[one] for one in sorted(needed))
    if not given:
        raise InputError(f"{name}: expected {wanted} for {method}, found some samples without the one or the other")
    (only,) = given
    raise InputError(f"{name}: expected {wanted} for {method}, found {_SENSED[only]} alone; {_FOR_ONE[only]}")


def with_background(samples: Samples, method: str, recipe: str, name: str) -> Samples:
    """Return samples whose pictures have their background: these, or the raw ones that they were prepared from.

    Args:
        samples: Raw or prepared ones.
        method: Name of the method that needs the background, for the messages.
        recipe: Name of the preparation that keeps it, likewise.
        name: Name of the argument, likewise.

    Warns:
        UserWarning: The raw ones are taken.

    Raises:
        InputError: The background was removed, and the raw ones are not at hand.
    """
    black = [one for one in preparations_of_samples(samples) if one and one.zero_rgb and one.background != "keep"]
    if not black:
        return samples
    place = f"{samples.path}: " if isinstance(samples, SampleDataset) else ""
    head = "" if place == f"{name}: " else f"{name}: "  # the command line calls a data set by its path
    raw = originals_of(samples) if isinstance(samples, SampleDataset) else None
    if raw is None:
        raise InputError(
            f"{head}{place}expected pictures with their background, which {method} compares, found it removed"
            f" (zero_rgb: True); prepare the raw data anew (mmad-bank prepare RAW --recipe {recipe})"
        )
    assert isinstance(samples, SampleDataset)
    changed = changed_originals(samples, raw)
    doubt = (
        f"; {len(changed)} of the {len(raw)} samples there are other files than those that were prepared, by name, size"
        f" or date, the first {changed[0]}"
        if changed
        else ""
    )
    warnings.warn(
        f"{place}{method} compares the pictures' background, which is removed here; takes the raw data instead,"
        f" {raw.path}, and prepares them anew (mmad-bank prepare --recipe {recipe} does it once){doubt}",
        stacklevel=4,
    )
    return raw


def refuse_other_preparation(sample: Sample, preprocessing: Preprocessing) -> None:
    """Let a training sample that was prepared otherwise than the others end the training.

    Raises:
        OtherPreparation: It was.
    """
    differences = _differences(sample.preparation, preprocessing)
    if differences:
        raise OtherPreparation(f"{name_of(sample)}: prepared otherwise than the samples before it ({differences})")


def prepare_as(sample: Sample, preprocessing: Preprocessing, size: int) -> Sample:
    """Preprocess a sample, unless that has been done.

    Raises:
        InputError: It cannot be used, or has another size than (size, size) then.
    """
    prepared = preprocess(sample, preprocessing) if sample.preparation is None else check_sample(sample)
    if prepared.size != (size, size):
        found = "×".join(map(str, prepared.size))
        raise InputError(
            f"{name_of(sample)}: expected a prepared sample of {size}×{size} pixels (image_size), found {found}"
        )
    return prepared


def name_of(sample: Sample) -> str:
    """Name a sample in a message."""
    return str(sample.rgb_path or sample.id or "sample")


def _differences(preparation: Preprocessing | None, preprocessing: Preprocessing) -> str:
    """Say how a preparation differs from another one; empty where it does not, or is not known."""
    return "" if preparation is None else "; ".join(preparation.differences(preprocessing))
