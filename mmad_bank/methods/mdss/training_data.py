"""Data that MDSS's trainings look at again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.progress import progress_bar
from mmad_bank._internal.resume import Stages
from mmad_bank._internal.tensor_files import new_array
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import Samples
from mmad_bank.errors import NoneUsableError
from mmad_bank.extraction import usable
from mmad_bank.features.point_alignment import measured_points
from mmad_bank.methods.mdss.pdn import foreground_mask
from mmad_bank.methods.mdss.point_patches import CloudPatches
from mmad_bank.methods.training_features import Seen


class TrainingData:
    """Data that the trainings look at again and again, prepared once and kept in files.

    Args:
        dataset: The training samples.
        prepare: Function that prepares one for the training.
        cut: Function that cuts a cloud (N, 3) into patches; None where no patches are needed.
        size: Side of a prepared sample, in pixels.
        stages: Stages that the files go to.

    Attributes:
        images: (n, 3, S, S) float32, memory-mapped.
        masks: (n, S, S) bool, the foreground.
        patches: (P, K, 3) float32, memory-mapped; empty without a 3-D branch.
        counts: (P,) int64, number of distinct points of each.
        seen: Record of the n samples, and of those that were left out.
    """

    def __init__(
        self, dataset: Samples, prepare: Callable[[Sample], Sample], cut: Callable[[Tensor], CloudPatches] | None,
        size: int, stages: Stages,
    ) -> None:  # fmt: skip
        self.prepare, self.cut, self.size = prepare, cut, size
        names = ("train-rgb.npy", "train-masks.npy", "train-patches.npy", "train-counts.npy")
        paths = [stages.state(name) for name in names]

        def write(path: Path) -> None:
            self._write(dataset, paths, stages.progress)
            self.seen.write(path)

        self.seen = Seen()
        self.seen = Seen.read(stages.run("train.json", write))
        rgb, masks, patches, counts = (np.load(path, mmap_mode="r") for path in paths)
        self.images, self.masks = rgb[: len(self.seen.ids)], masks[: len(self.seen.ids)]
        self.patches, self.counts = patches, torch.from_numpy(np.array(counts))

    def _write(self, dataset: Samples, paths: list[Path], progress: bool) -> None:
        seen, size = self.seen, self.size
        rgb = new_array(paths[0], (len(dataset), 3, size, size))
        masks = new_array(paths[1], (len(dataset), size, size), np.bool_)
        patches, counts = [], []
        prepared = usable(dataset, partial(_prepare_measured, self.prepare), seen.skipped, normal=True)
        for sample in counted("cutting patches", prepared, len(dataset), progress):
            number = len(seen.ids)
            rgb[number], masks[number] = sample.rgb.numpy(), foreground_mask(sample.xyz[None])[0].numpy()
            if self.cut is not None:
                cut = self.cut(measured_points(sample.xyz.permute(1, 2, 0))[0])
                patches.append(cut.points.numpy())
                counts.append(np.full(len(cut.points), cut.count))
            seen.ids.append(sample.id or str(number))
            seen.take(sample)
        if not seen.ids:
            raise NoneUsableError("dataset: no sample can be used", seen.skipped)
        rgb.flush()
        masks.flush()
        np.save(paths[2], np.concatenate(patches) if patches else np.zeros((0, 1, 3), np.float32))
        np.save(paths[3], np.concatenate(counts) if counts else np.zeros(0, np.int64))


def clouds_of(samples: Samples, prepare: Callable[[Sample], Sample], *, progress: bool = False) -> Iterator[Tensor]:
    """Yield the measured points (N, 3) of the normal samples that can be used.

    Args:
        samples: The samples.
        prepare: Function that prepares one for the training.
        progress: Whether to show a bar on a terminal.

    Raises:
        NoneUsableError: None of them can be used.
    """
    skipped: dict[str, str] = {}
    prepared = usable(samples, partial(_prepare_measured, prepare), skipped, normal=True)
    for sample in counted("cutting patches", prepared, len(samples), progress):
        yield measured_points(sample.xyz.permute(1, 2, 0))[0]
    if len(skipped) == len(samples):
        raise NoneUsableError("samples: no sample can be used", skipped)


def _prepare_measured(prepare: Callable[[Sample], Sample], sample: Sample) -> Sample:
    """Prepare a sample, and let one without measured points be skipped."""
    prepared = prepare(sample)
    measured_points(prepared.xyz.permute(1, 2, 0), str(prepared.xyz_path or prepared.id or "sample"))
    return prepared


def counted(description: str, samples: Iterable[Sample], total: int, progress: bool) -> Iterator[Sample]:
    """Yield samples under a progress bar."""
    with progress_bar(description, total) if progress else nullcontext(lambda done: None) as report:
        for number, sample in enumerate(samples, 1):
            yield sample
            report(number)
