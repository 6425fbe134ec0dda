"""Equal images among those that a model is calibrated on: a copy of a training image is not held out.

Its distance to a bank that holds the other one is about 0, and so the threshold would be too low. Whether images are
equal is told by what the method looks at of the samples, not by features: their rounding may depend on the images that
are described with them.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress

from mmad_bank.calibration import Fold, folds_of, runs_of
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import Samples
from mmad_bank.errors import MmadBankError

Mark = Mapping[str, str]
"""Hashes of a sample's tensors, by modality; empty where they are not known."""


def mark_of(sample: Sample) -> dict[str, str]:
    """Return a sample's mark.

    Example:
        >>> import torch
        >>> one = Sample(torch.zeros(3, 2, 2), torch.ones(3, 2, 2), None)
        >>> mark_of(one) == mark_of(Sample(torch.zeros(3, 2, 2), torch.ones(3, 2, 2), None, id="copy"))
        True
    """
    given = {"rgb": sample.rgb, "xyz": sample.xyz}
    return {
        name: hashlib.blake2b(
            str(tuple(given[name].shape)).encode() + given[name].contiguous().numpy().tobytes(), digest_size=16
        ).hexdigest()
        for name in sorted(sample.modalities)
    }


def marks_of(samples: Samples) -> list[Mark]:
    """Return the marks of all samples, which are read; of one that cannot be read it is empty."""
    marks: list[Mark] = []
    for number in range(len(samples)):
        marks.append({})
        with suppress(MmadBankError):
            marks[-1] = mark_of(samples[number])
    return marks


def folds_of_marks(
    marks: Sequence[Mark], modalities: Iterable[str], folds: int, groups: Sequence[str] | None = None
) -> list[Fold]:
    """Cut training images into folds, see :func:`mmad_bank.calibration.folds_of`; one fold if all are equal.

    Args:
        marks: Their marks.
        modalities: What the method looks at.
        folds: Largest number of folds.
        groups: Part that each shows; those of one are in one fold, and so are parts that share an equal image. None
            where each counts by itself.
    """
    keys = _keys(marks, modalities)
    return folds_of(_joined(keys, list(range(len(keys))) if groups is None else groups), folds)


def not_among(marks: Sequence[Mark], train: Sequence[Mark], modalities: Iterable[str]) -> list[slice]:
    """Return the runs of those validation images that are no training images.

    Args:
        marks: Marks of the validation images.
        train: Marks of the training images.
        modalities: What the method looks at.

    Warns:
        UserWarning: Some are left out.
    """
    looked_at = sorted(modalities)
    known = set(_keys(train, looked_at)) - {()}
    kept = [number for number, key in enumerate(_keys(marks, looked_at)) if key not in known]
    n_out = len(marks) - len(kept)
    if n_out:
        many = f"{n_out} of {len(marks)} images are" if n_out > 1 else f"1 of {len(marks)} images is"
        warnings.warn(
            f"validation: {many} among the training images too, and left out of the calibration", stacklevel=2
        )
    return runs_of(kept)


def copies_of(image: int, marks: Sequence[Mark], modalities: Iterable[str]) -> list[int]:
    """Return the number of an image, and those of the images that are equal to it."""
    keys = _keys(marks, modalities)
    return [number for number, key in enumerate(keys) if number == image or (key and key == keys[image])]


def one_fold(n: int, groups: Sequence[str] | None = None) -> str:
    """Return words for training images that cannot be cut into folds.

    Args:
        n: Number of the images.
        groups: Part that each shows; None where each counts by itself.

    Example:
        >>> one_fold(3)
        'calibration: expected at least 2 different training images for folds, found 3 equal ones'
        >>> one_fold(4, ["1", "1", "2", "2"])
        'calibration: expected training parts that can be held out, found 2 parts that equal images join to one'
    """
    if groups is None:
        return f"calibration: expected at least 2 different training images for folds, found {n} equal ones"
    joined = f"found {len(set(groups))} parts that equal images join to one"
    return f"calibration: expected training parts that can be held out, {joined}"


def _joined(keys: Sequence[tuple[str, ...]], groups: Sequence[Hashable]) -> list[int]:
    """Return for each image the first one that it belongs together with: by its content, its part, or over others."""
    first: dict[Hashable, int] = {}
    above = list(range(len(keys)))

    def root(number: int) -> int:
        while above[number] != number:
            number = above[number]
        return number

    for number, (key, group) in enumerate(zip(keys, groups, strict=True)):
        for name in (("image", key or number), ("part", group)):
            low, high = sorted((root(first.setdefault(name, number)), root(number)))
            above[high] = low
    return [root(number) for number in range(len(keys))]


def _keys(marks: Sequence[Mark], modalities: Iterable[str]) -> list[tuple[str, ...]]:
    looked_at = sorted(modalities)
    return [tuple(mark[name] for name in looked_at if name in mark) for mark in marks]
