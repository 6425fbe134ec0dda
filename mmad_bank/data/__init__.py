"""Data: readers of data sets and their preprocessing.

Importing the package is light: submodules load when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

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


__getattr__, __dir__ = lazily(__name__, _EXPORTS, moved={"write_synthetic": "mmad_bank.synthetic.write_synthetic"})
