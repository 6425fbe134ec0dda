"""Features of training images as a stage of a training: extracted once, kept in files, memory-mapped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from mmad_bank._internal.progress import progress_bar, within
from mmad_bank._internal.resume import Stages, counted, fingerprint_of, wording
from mmad_bank._internal.tensor_files import new_array
from mmad_bank.data.frame import Frame
from mmad_bank.data.names import category_of
from mmad_bank.data.sample import Sample
from mmad_bank.extraction import Extractors, Journal, extract_to
from mmad_bank.features.factory import RANDOM
from mmad_bank.methods.base import Method, Samples
from mmad_bank.methods.copies import Mark, mark_of
from mmad_bank.methods.shareable import CategoryData

IMAGES_AT_ONCE = 4
_LARGE = 1024
"""Side of images, in pixels, from which on they are described one at a time; their features do not depend on it."""
_OF_EXTRACTORS = (
    "rgb", "rgb_weights", "rgb_layers", "xyz", "xyz_weights", "num_groups", "compute_dtype", "image_size", "seed"
)  # fmt: skip
"""Arguments on which extracted features depend, beside what a recipe may decide."""

Dumps = dict[str, np.ndarray]
"""Features of the training images by modality or bank, (images, P, D) float32, memory-mapped."""


def files_of_split(split: str, outputs: Sequence[str]) -> tuple[str, ...]:
    """Name the files that :func:`extract_split` leaves: one per output, and last the one that says they are whole."""
    return (*(f"{split}-{output}.npy" for output in outputs), f"{split}.json")


@dataclass
class Seen:
    """Record of the samples of a split that a training saw, kept with their features.

    Attributes:
        ids: Ids of the samples that were used, in order.
        skipped: Reasons why others were left out, by id.
        frames: Frames of the samples that were used, in order; None where one is not known.
        categories: Categories of those samples, sorted.
        marks: What tells them from others, see :mod:`mmad_bank.methods.copies`; empty where an older version wrote.
    """

    ids: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    frames: list[Frame | None] = field(default_factory=list)
    categories: set[str] = field(default_factory=set)
    marks: list[Mark] = field(default_factory=list)

    def take(self, sample: Sample) -> None:
        """Note a prepared sample that is used."""
        self.frames.append(sample.frame)
        self.marks.append(mark_of(sample))
        self.categories |= {sample.category or category_of(sample.id)} - {""}

    def write(self, path: Path) -> None:
        """Write it to a JSON file."""
        path.write_text(json.dumps({"ids": self.ids, "skipped": self.skipped, **self.of_first(len(self.frames))}))

    def of_first(self, n: int) -> dict[str, Any]:
        """Return what is known of the first n samples beside their ids, JSON-able."""
        frames = [None if frame is None else frame.as_text() for frame in self.frames[:n]]
        return {"frames": frames, "categories": sorted(self.categories), "marks": self.marks[:n]}

    def restore(self, content: dict[str, Any]) -> None:
        """Take back what :meth:`of_first` gave of the samples with the ids in it.

        Raises:
            ValueError: It is something else.
        """
        frames = [None if text is None else Frame.from_text(text) for text in content["frames"]]
        if len(frames) != len(content["ids"]):
            raise ValueError(f"frames of {len(frames)} samples")
        self.frames, self.categories, self.marks = frames, set(content["categories"]), _marks_in(content)

    @classmethod
    def read(cls, path: Path) -> Seen:
        """Read what :meth:`write` wrote; an older version wrote ids and skipped ones only."""
        content = json.loads(path.read_text())
        texts = content.get("frames", [None] * len(content["ids"]))
        frames = [None if text is None else Frame.from_text(text) for text in texts]
        categories = content.get("categories", [category_of(name) for name in content["ids"]])
        return cls(content["ids"], content["skipped"], frames, {*categories} - {""}, _marks_in(content))

    def note(self, method: Method) -> None:
        """Let a method know what it is fitted on."""
        method.train_ids_, method.frames_ = self.ids, self.frames
        method.skipped_, method.categories_ = dict(self.skipped), sorted(self.categories)


def _marks_in(content: Mapping[str, Any]) -> list[Mark]:
    """Return the marks that were written, or empty ones where an older version wrote none."""
    return content.get("marks", [{}] * len(content["ids"]))


def extract_split(
    method: Method, extractors: Extractors, split: str, dataset: Samples, stages: Stages
) -> tuple[Dumps, Seen]:
    """Write the features of a split to files, one per output of the extractors, and map them.

    Returns:
        The features, and what is known of the samples in them.

    Raises:
        InputError: No sample can be used.
    """
    *tables, whole = files_of_split(split, extractors.outputs)
    names = dict(zip(extractors.outputs, tables, strict=True))
    for name in tables:
        stages.state(name)

    so_far = stages.state(f"{split}-so-far.json")

    def write(path: Path) -> None:
        seen = Seen()
        journal = Journal(so_far, seen.of_first, seen.restore)
        with within("training images" if split == "train" else f"{split} images"):
            seen.ids, seen.skipped = extract_to(
                stages.folder, dataset, extractors, method.prepare_for_training, names=names, kept=seen.take,
                batch=1 if method.image_size >= _LARGE else IMAGES_AT_ONCE, normal=True, progress=stages.progress,
                name="dataset" if split == "train" else split, journal=journal,
            )  # fmt: skip
        seen.write(path)

    seen = Seen.read(stages.run(whole, write))
    so_far.unlink(missing_ok=True)
    dumps = {output: np.load(stages.folder / name, mmap_mode="r") for output, name in names.items()}
    return dumps, seen


def share_features(source: Path, target: Path, fingerprint: dict[str, Any], outputs: Sequence[str]) -> bool:
    """Copy the training features that one fit has left to the folder of another, if both would extract the same.

    Args:
        source: Folder of the stages of the fit that extracted them.
        target: Folder of the stages of the other fit.
        fingerprint: Fingerprint of the other fit.
        outputs: Names of the outputs of its extractors.

    Returns:
        Whether they are the same, and whole.

    Raises:
        InputError: ``target`` cannot be written.
    """
    files = files_of_split("train", outputs)
    theirs = fingerprint_of(source)
    if _of_features(fingerprint) != _of_features(theirs) or not all((source / name).exists() for name in files):
        return False
    if RANDOM in _of_features(fingerprint).values() and set(outputs) & {"rgb", "xyz"} != _modalities_in(source):
        return False  # random weights depend on which networks are made before
    stages = Stages(target, fingerprint)
    for name in files:
        stages.run(name, partial(shutil.copyfile, source / name))
    return True


def _of_features(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return that part of a fit's fingerprint on which its training features depend."""
    arguments, files = fingerprint.get("arguments", {}), fingerprint.get("files", {})
    own = {name: arguments.get(name) for name in _OF_EXTRACTORS}
    weights = {name: changed for name, changed in files.items() if name in _OF_EXTRACTORS}
    data = [*fingerprint.get("data", [])[:1]]
    facts = {name: fingerprint.get(name) for name in ("extraction", "preprocessing")}
    return {**own, "files": weights, "data": data, **facts}


def _modalities_in(folder: Path) -> set[str]:
    return {name for name in ("rgb", "xyz") if (folder / files_of_split("train", [name])[0]).exists()}


def batches(dumps: Dumps, device: str) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield dumps a few images at a time, on a device, with the number of the first."""
    for first in range(0, len(next(iter(dumps.values()))), IMAGES_AT_ONCE):
        part = {name: np.array(table[first : first + IMAGES_AT_ONCE]) for name, table in dumps.items()}
        yield first, {name: torch.from_numpy(rows).to(device) for name, rows in part.items()}


def made_of(
    dumps: Dumps, file: str, make: Callable[[Mapping[str, Tensor]], Tensor], stages: Stages, device: str
) -> np.ndarray:
    """Write to a file, as a stage, what ``make`` makes of the features (B, ...), and map it."""
    n_images = len(next(iter(dumps.values())))

    def write(path: Path) -> None:
        table: np.memmap | None = None
        with bar(f"writing {file.removesuffix('.npy')} features", n_images, stages) as report:
            for first, features in batches(dumps, device):
                rows = make(features)
                if table is None:
                    table = new_array(path, (n_images, *rows.shape[1:]))
                table[first : first + len(rows)] = rows.cpu().numpy()
                report(first + len(rows))
        assert table is not None
        table.flush()

    return np.load(stages.run(file, write), mmap_mode="r")


def bar(description: str, total: int, stages: Stages) -> AbstractContextManager[Callable[[int], None]]:
    """Return a bar if the training shows any."""
    return progress_bar(description, total) if stages.progress else nullcontext(lambda done: None)


Place = Callable[[str, Tensor], Tensor]
"""Function that brings a modality's patch features (P, D) to patches that both modalities share."""


def as_they_are(modality: str, patches: Tensor) -> Tensor:
    """Return patch features whose grid both modalities share already."""
    del modality
    return patches


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """The patch features of the training images, point features first, read from dumps one image at a time.

    Args:
        dumps: Features of both modalities.
        place: Function that brings them to patches that both modalities share.
    """

    def __init__(self, dumps: Dumps, place: Place = as_they_are) -> None:
        self.xyz, self.rgb, self.place = dumps["xyz"], dumps["rgb"], place

    def __len__(self) -> int:
        return len(self.xyz)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        xyz, rgb = (torch.from_numpy(np.array(table[index])) for table in (self.xyz, self.rgb))
        return self.place("xyz", xyz), self.place("rgb", rgb)


def pairs_of(members: Sequence[CategoryData], place: Place = as_they_are) -> ConcatDataset[tuple[Tensor, Tensor]]:
    """Return the training images of one or of several categories, one category after the other, see :class:`Pairs`."""
    return ConcatDataset([Pairs(one.data, place) for one in members])


@wording(r"(train|validation)(?:-so-far)?\.json")
def _word_features(path: Path, split: str) -> str:
    """Say how many samples have features: all that can be used, or the first ones so far."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kind = f"{'training' if split == 'train' else split} sample"
    n, total = len(content["ids"]), content.get("total")
    return f"features of {counted(n, kind)}" if total is None else f"features of {n:,} of {counted(total, kind)}"
