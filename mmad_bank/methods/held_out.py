"""Scores of normal images that a model has not learnt from, for its calibration.

They come from the validation split, or from folds: banks are selected anew without a part of the training images, and
score just that part. Everything else that a method learns (a fusion, an adaptation, a decision) stays as it is. A fold
is a run of neighboring images, so that pictures of one part, which lie beside each other, stay together; where the
pictures' names say which part they show, no part is cut.
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
from mmad_bank.data.frame import Frame, picture_of
from mmad_bank.data.roi import RegionOfInterest
from mmad_bank.fusion import CalibratedFusion, PartScales
from mmad_bank.methods.parts import HeldOutParts
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

    def batches(self, device: str) -> Iterator[tuple[Sequence[Frame | None], dict[str, Scores]]]:
        """Yield frames and scores a few images at a time, as scoring them gives them, on a device."""
        for first in range(0, len(self), IMAGES_AT_ONCE):
            part = slice(first, first + IMAGES_AT_ONCE)
            scores = {
                name: Scores(self.patches[name][part].to(device), self.images[name][part].to(device), torch.empty(0))
                for name in self.images
            }
            yield self.frames[part], scores


def table_without(table: np.ndarray, rows: Tensor | None, left_out: slice | None) -> np.ndarray | FeatureDump:
    """Return the features of a table that a bank is selected from.

    Args:
        table: (images, P, D).
        rows: Numbers of its patches that count; None for all.
        left_out: Images that do not count; None for none.

    Returns:
        Where all patches of images count, nothing is copied.
    """
    if left_out is None:
        return table_inside(table, rows)
    if rows is not None:
        image = rows // table.shape[1]
        return table_inside(table, rows[(image < left_out.start) | (image >= left_out.stop)])
    kept = [part for part in (table[: left_out.start], table[left_out.stop :]) if len(part)]
    return FeatureDump([part for one in kept for part in open_dump(one).parts])


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
    score: ScoreRows, dumps: Dumps, frames: Sequence[Frame | None], device: str, stages: Stages
) -> list[dict[str, Scores]]:
    """Score held-out images, see :func:`scored`; what is kept of the scores is on the CPU."""
    return [
        {name: Scores(own.patch.cpu(), own.image.cpu(), torch.empty(0)) for name, own in scores.items()}
        for _, scores in scored(score, dumps, frames, device, stages, "scoring held-out images")
    ]


def in_folds(
    score_without: Callable[[slice], ScoreRows], dumps: Dumps, frames: Sequence[Frame | None], blocks: Sequence[slice],
    device: str, stages: Stages,
) -> list[dict[str, Scores]]:  # fmt: skip
    """Score each training image by banks that were selected without its fold.

    Args:
        score_without: Function that gives the rule by which patches are scored with banks without some images.
        dumps: Features of the training images.
        frames: Their frames.
        blocks: Images of each fold, as :func:`mmad_bank.calibration.blocks_of` cuts them.
        device: Device that scores.
        stages: Stages of the training.
    """
    found = []
    for number, block in enumerate(blocks, 1):
        with within("fold", number, len(blocks)):
            own = {name: table[block] for name, table in dumps.items()}
            found += score_all(score_without(block), own, frames[block], device, stages)
    return found


def kept_in(
    stages: Stages, make: Callable[[], list[dict[str, Scores]]], frames: Sequence[Frame | None], ids: Sequence[str],
    origin: str,
) -> HeldOut:  # fmt: skip
    """Make held-out scores as a stage of a training, or read those that an earlier run has made."""

    def write(path: Path) -> None:
        found = make()
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


def fusion_of(
    held_out: HeldOut, map_of: Callable[[str, Tensor], Tensor], device: str, roi: RegionOfInterest | None
) -> CalibratedFusion | None:
    """Return the calibrated fusion of several banks; None of a single one.

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
    return scales.fusion()


def calibration_of(
    held_out: HeldOut,
    fuse: Callable[[Mapping[str, Scores]], tuple[Tensor, Tensor]],
    device: str,
    roi: RegionOfInterest | None,
    shown: HeldOutParts | None = None,
) -> ModelCalibration | None:
    """Return the calibration of a method's result and of its parts.

    Args:
        held_out: The banks' scores.
        fuse: Function that makes of them image scores (B,) and maps (B, S, S).
        device: Device that fuses.
        roi: Region of interest, whose pixels count; None for all.
        shown: Which parts the images show; None where each counts by itself.
    """
    seen = Observed(held_out.origin, len(held_out), shown)
    for frames, scores in held_out.batches(device):
        images, maps = fuse(scores)
        for b, frame in enumerate(frames):
            parts = {name: float(own.image[b]) for name, own in scores.items()}
            seen.take(float(images[b]), parts, _counting(maps[b], frame, roi))
    return seen.calibration()


def _counting(values: Tensor, frame: Frame | None, roi: RegionOfInterest | None) -> Tensor:
    """Return the pixels of a map that count: those that show the picture, in the region of interest."""
    square = square_inside(roi, frame)
    return picture_of(values, frame) if square is None else values[square.to(values.device)]
