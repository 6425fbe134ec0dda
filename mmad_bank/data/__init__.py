"""Data: readers of data sets and their preparation.

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
    "MVTecADDataset": "mvtec_ad",
    "OtherPreparation": "recipes",
    "PartView": "views",
    "PicturesDataset": "pictures",
    "Points": "projection",
    "Preprocessing": "recipes",
    "RECIPES": "recipes",
    "Real3DDataset": "real3d",
    "Record": "sample",
    "RegionOfInterest": "roi",
    "Sample": "sample",
    "SampleDataset": "dataset",
    "UNITS": "mmad_bank._internal.units",
    "ViewPattern": "views",
    "VisADataset": "visa",
    "categories_of": "layouts",
    "check_sample": "sample",
    "few_shot": "dataset",
    "normalize_rgb": "preprocessing",
    "open_dataset": "layouts",
    "open_points": "real3d",
    "open_sample": "sample",
    "preparation_of": "prepared",
    "prepare": "preparation",
    "preprocess": "preprocessing",
    "read_mask": "_images",
    "read_region": "roi",
    "read_rgb": "_images",
    "read_xyz": "_images",
}
__all__ = [
    "RECIPES",
    "UNITS",
    "EyecandiesDataset",
    "FolderDataset",
    "Frame",
    "MVTec3DDataset",
    "MVTecADDataset",
    "OtherPreparation",
    "PartView",
    "PicturesDataset",
    "Points",
    "Preprocessing",
    "Real3DDataset",
    "Record",
    "RegionOfInterest",
    "Sample",
    "SampleDataset",
    "ViewPattern",
    "VisADataset",
    "categories_of",
    "check_sample",
    "few_shot",
    "normalize_rgb",
    "open_dataset",
    "open_points",
    "open_sample",
    "preparation_of",
    "prepare",
    "preprocess",
    "read_mask",
    "read_region",
    "read_rgb",
    "read_xyz",
]

if TYPE_CHECKING:
    from mmad_bank._internal.units import UNITS
    from mmad_bank.data._images import read_mask, read_rgb, read_xyz
    from mmad_bank.data.dataset import SampleDataset, few_shot
    from mmad_bank.data.eyecandies import EyecandiesDataset
    from mmad_bank.data.folder import FolderDataset
    from mmad_bank.data.frame import Frame
    from mmad_bank.data.layouts import categories_of, open_dataset
    from mmad_bank.data.mvtec3d import MVTec3DDataset
    from mmad_bank.data.mvtec_ad import MVTecADDataset
    from mmad_bank.data.pictures import PicturesDataset
    from mmad_bank.data.preparation import prepare
    from mmad_bank.data.prepared import preparation_of
    from mmad_bank.data.preprocessing import normalize_rgb, preprocess
    from mmad_bank.data.projection import Points
    from mmad_bank.data.real3d import Real3DDataset, open_points
    from mmad_bank.data.recipes import RECIPES, OtherPreparation, Preprocessing
    from mmad_bank.data.roi import RegionOfInterest, read_region
    from mmad_bank.data.sample import Record, Sample, check_sample, open_sample
    from mmad_bank.data.views import PartView, ViewPattern
    from mmad_bank.data.visa import VisADataset

__getattr__, __dir__ = lazily(
    __name__,
    _EXPORTS,
    moved={
        "normalise_rgb": "mmad_bank.data.normalize_rgb",
        "write_synthetic": "mmad_bank.synthetic.write_synthetic",
    },
)
