"""Data: readers of data sets, preprocessing, synthetic data sets, and images to try things on.

Importing the package is light: submodules load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "EyecandiesDataset": "eyecandies",
    "FolderDataset": "folder",
    "Frame": "frame",
    "MVTec3DDataset": "mvtec3d",
    "Preprocessing": "preprocessing",
    "Sample": "sample",
    "SampleDataset": "sample",
    "categories_of": "layouts",
    "check_sample": "sample",
    "few_shot": "sample",
    "normalise_rgb": "preprocessing",
    "open_dataset": "layouts",
    "open_sample": "sample",
    "preparation_of": "preparation",
    "prepare": "preparation",
    "preprocess": "preprocessing",
    "write_synthetic": "synthetic",
}
__all__ = [
    "EyecandiesDataset",
    "FolderDataset",
    "Frame",
    "MVTec3DDataset",
    "Preprocessing",
    "Sample",
    "SampleDataset",
    "categories_of",
    "check_sample",
    "few_shot",
    "normalise_rgb",
    "open_dataset",
    "open_sample",
    "preparation_of",
    "prepare",
    "preprocess",
    "write_synthetic",
]

if TYPE_CHECKING:
    from mmad_bank.data.eyecandies import EyecandiesDataset
    from mmad_bank.data.folder import FolderDataset
    from mmad_bank.data.frame import Frame
    from mmad_bank.data.layouts import categories_of, open_dataset
    from mmad_bank.data.mvtec3d import MVTec3DDataset
    from mmad_bank.data.preparation import preparation_of, prepare
    from mmad_bank.data.preprocessing import Preprocessing, normalise_rgb, preprocess
    from mmad_bank.data.sample import Sample, SampleDataset, check_sample, few_shot, open_sample
    from mmad_bank.data.synthetic import write_synthetic


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"mmad_bank.data.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'mmad_bank.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
