"""Scores of normal images that a model has not learnt from, for its calibration.

They come from the validation split, or from folds: banks are selected anew without a part of the training images, and
score just that part. Everything else that a method learns (a fusion, an adaptation, a decision) stays as it is. A fold
is a run of neighboring images, so that pictures of one part, which lie beside each other, stay together; where the
pictures' names say which part they show, no part is cut. Equal images are in one fold
(:mod:`mmad_bank.methods.copies`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.progress import within
from mmad_bank._internal.resume import Stages
from mmad_bank._internal.tensor_files import write_tensors
from mmad_bank.bank import Scores
from mmad_bank.bank.dumps import FeatureDump, open_dump
from mmad_bank.calibration import Fold
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.roi import RegionOfInterest
from mmad_bank.fusion import CalibratedFusion, PartScales
from mmad_bank.methods.parts import HeldOutParts, judged_together
from mmad_bank.methods.roi import square_inside, table_inside
from mmad_bank.methods.training_features import IMAGES_AT_ONCE, Dumps, bar, batches
from mmad_bank.methods.verdicts import ModelCalibration, Observed


@dataclass(frozen=True)
class HeldOut:
    """Banks' scores of held-out normal images.

    Attributes:
        images: (n,) float32, the image scores by bank.
        patches: (n, P) float32, the scores of an image's places by bank.
        frames: Frames of the images; None where one is not known.
        ids: Their ids.
        origin: Words for which images they are.
    """

    images: dict[str, Tensor]
    patches: dict[str, Tensor]
    frames: Sequence[Frame | None]
    ids: Sequence[str]
    origin: str

    def __len__(self) -> int:
        return len(self.frames)

    def batches(
        self, device: str, at_once: int = IMAGES_AT_ONCE
    ) -> Iterator[tuple[Sequence[Frame | None], dict[str, Scores]]]:
        """Yield frames and scores a few images at a time, as scoring them gives them, on a device."""
        for first in range(0, len(self), at_once):
            part = slice(first, first + at_once)
            scores = {
                name: Scores(self.patches[name][part].to(device), self.images[name][part].to(device), torch.empty(0))
                for name in self.images
            }
            yield self.frames[part], scores


def table_of(table: np.ndarray, rows: Tensor | None, images: Sequence[slice] | None) -> np.ndarray | FeatureDump:
    """Return the features of a table that a bank is selected from.

    Args:
        table: (images, P, D).
        rows: Numbers of its patches that count; None for all.
        images: Runs of the images that count; None for all.

    Returns:
        Where all patches of images count, nothing is copied.
    """
    if images is None:
        return table_inside(table, rows)
    if rows is not None:
        image = rows // table.shape[1]
        counts = torch.zeros(len(table), dtype=torch.bool)
        for run in images:
            counts[run] = True
        return table_inside(table, rows[counts[image]])
    return FeatureDump([part for run in images for part in open_dump(table[run]).parts])


ScoreRows = Callable[[Mapping[str, Tensor], Sequence[Frame | None]], dict[str, Scores]]


def scored(
    score: ScoreRows, dumps: Dumps, frames: Sequence[Frame | None], device: str, stages: Stages, what: str
) -> Iterator[tuple[Sequence[Frame | None], dict[str, Scores]]]:
    """Yield the frames of the images of dumps, and their scores, a few images at a time.

    Args:
        score: Rule by which patches are scored.
        dumps: Features of the images.
        frames: Their frames.
        device: Device that scores.
        stages: Stages of the training.
        what: Words for the bar.
    """
    n_images = len(next(iter(dumps.values())))
    with bar(what, n_images, stages) as report:
        for first, features in batches(dumps, device):
            own = frames[first : first + IMAGES_AT_ONCE]
            yield own, score(features, own)
            report(first + len(own))


def score_all(
    score: ScoreRows, dumps: Dumps, frames: Sequence[Frame | None], runs: Sequence[slice], device: str, stages: Stages
) -> list[tuple[int, dict[str, Scores]]]:
    """Score held-out images, see :func:`scored`: some runs of those in dumps.

    Returns:
        Numbers of images, and the scores from each on to the next one's, on the CPU.
    """
    found = []
    for run in runs:
        own, first = {name: table[run] for name, table in dumps.items()}, run.start
        for part, scores in scored(score, own, frames[run], device, stages, "scoring held-out images"):
            kept = {name: Scores(one.patch.cpu(), one.image.cpu(), torch.empty(0)) for name, one in scores.items()}
            found.append((first, kept))
            first += len(part)
    return found


def in_folds(
    score_with: Callable[[list[slice]], ScoreRows], dumps: Dumps, frames: Sequence[Frame | None], folds: Sequence[Fold],
    device: str, stages: Stages,
) -> list[tuple[int, dict[str, Scores]]]:  # fmt: skip
    """Score each training image by banks that were selected without its fold.

    Args:
        score_with: Function that gives the rule by which patches are scored with banks of some runs of images.
        dumps: Features of the training images.
        frames: Their frames.
        folds: The folds.
        device: Device that scores.
        stages: Stages of the training.

    Returns:
        As :func:`score_all`, in the order of the images.
    """
    found = []
    for number, fold in enumerate(folds, 1):
        with within("fold", number, len(folds)):
            found += score_all(score_with(fold.others), dumps, frames, fold.own, device, stages)
    return sorted(found, key=lambda one: one[0])


def kept_in(
    stages: Stages, make: Callable[[], list[tuple[int, dict[str, Scores]]]], frames: Sequence[Frame | None],
    ids: Sequence[str], origin: str,
) -> HeldOut:  # fmt: skip
    """Make held-out scores as a stage of a training, or read those that an earlier run has made."""

    def write(path: Path) -> None:
        found = [scores for _, scores in make()]
        tensors: dict[str, Tensor] = {}
        for name in found[0]:
            whole = Scores.of([one[name] for one in found])
            tensors |= {f"{name}.image": whole.image, f"{name}.patch": whole.patch}
        write_tensors(path, tensors, {})

    from safetensors.torch import load_file

    tensors = load_file(stages.run("held-out.safetensors", write))
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    images, patches = ({name: tensors[f"{name}.{what}"] for name in names} for what in ("image", "patch"))
    return HeldOut(images, patches, frames, ids, origin)


def scales_of(
    held_out: HeldOut, map_of: Callable[[str, Tensor], Tensor], device: str, roi: RegionOfInterest | None
) -> PartScales | None:
    """Return the scales of several banks, image after image; None of a single one.

    Args:
        held_out: The banks' scores.
        map_of: Function that makes of a bank's scores of places (B, P) its maps (B, S, S).
        device: Device that makes maps.
        roi: Region of interest, whose pixels count; None for all.
    """
    if len(held_out.images) < 2:
        return None
    scales = PartScales()
    for frames, scores in held_out.batches(device):
        maps = {name: map_of(name, own.patch) for name, own in scores.items()}
        for b, frame in enumerate(frames):
            shown = {name: _counting(one[b], frame, roi) for name, one in maps.items()}
            scales.take({name: float(own.image[b]) for name, own in scores.items()}, shown)
    return scales


def calibration_of(
    held_out: HeldOut,
    fuse: Callable[[Mapping[str, Scores], CalibratedFusion | None], tuple[Tensor, Tensor]],
    device: str,
    roi: RegionOfInterest | None,
    shown: HeldOutParts | None = None,
    scales: PartScales | None = None,
) -> ModelCalibration | None:
    """Return the calibration of a method's result and of its parts.

    Args:
        held_out: The banks' scores.
        fuse: Function that makes of them image scores (B,) and maps (B, S, S), on a scale if one is given.
        device: Device that fuses.
        roi: Region of interest, whose pixels count; None for all.
        shown: Which parts the images show; None where each counts by itself.
        scales: The banks' scales, if they are fused on one: each image is on that of the others.
    """
    seen = Observed(held_out.origin, len(held_out), shown)
    together = judged_together(len(held_out), shown)
    for frames, scores in held_out.batches(device, 1 if scales is not None else IMAGES_AT_ONCE):
        scale = None if scales is None else scales.fusion(without=together[len(seen)])
        images, maps = fuse(scores, scale)
        for b, frame in enumerate(frames):
            parts = {name: float(own.image[b]) for name, own in scores.items()}
            seen.take(float(images[b]), parts, _counting(maps[b], frame, roi))
    return seen.calibration()


def _counting(values: Tensor, frame: Frame | None, roi: RegionOfInterest | None) -> Tensor:
    """Return the pixels of a map that count: those that show the picture, in the region of interest."""
    square = square_inside(roi, frame)
    return picture_of(values, frame) if square is None else values[square.to(values.device)]
