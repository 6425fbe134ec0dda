"""Features of training images as a stage of a training: extracted once, kept in files, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmad_bank._progress import within
from mmad_bank._stages import Stages
from mmad_bank.features.extraction import Extractors, extract_to
from mmad_bank.methods.base import Method, Samples

IMAGES_AT_ONCE = 4

Dumps = dict[str, np.ndarray]
"""Features of the training images by modality or bank, (images, P, D) float32, memory-mapped."""


def files_of_split(split: str, outputs: Sequence[str]) -> tuple[str, ...]:
    """Name the files that :func:`extract_split` leaves: one an output, and last the one that says they are whole."""
    return (*(f"{split}-{output}.npy" for output in outputs), f"{split}.json")


def extract_split(
    method: Method, extractors: Extractors, split: str, dataset: Samples, stages: Stages
) -> tuple[Dumps, list[str], dict[str, str]]:
    """Write the features of a split to files, one an output of the extractors, and map them.

    Returns:
        The features, the ids of the images in them, and by id why others were left out.

    Raises:
        InputError: No sample can be used.
    """
    *tables, whole = files_of_split(split, extractors.outputs)
    names = dict(zip(extractors.outputs, tables, strict=True))
    for name in tables:
        stages.state(name)

    def write(path: Path) -> None:
        with within("training images" if split == "train" else f"{split} images"):
            ids, skipped = extract_to(
                stages.folder, dataset, extractors, method.prepare, names=names, batch=IMAGES_AT_ONCE,
                normal=True, progress=stages.progress,
            )  # fmt: skip
        path.write_text(json.dumps({"ids": ids, "skipped": skipped}))

    done = json.loads(stages.run(whole, write).read_text())
    dumps = {output: np.load(stages.folder / name, mmap_mode="r") for output, name in names.items()}
    return dumps, done["ids"], done["skipped"]


class Pairs:
    """The patch features of the training images, point features first, read from dumps one image at a time."""

    def __init__(self, dumps: Dumps) -> None:
        self.xyz, self.rgb = dumps["xyz"], dumps["rgb"]

    def __len__(self) -> int:
        return len(self.xyz)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(np.array(self.xyz[index])), torch.from_numpy(np.array(self.rgb[index]))
