"""Feature extractors: images or point clouds in, patch features (B, P, D) out.

The packages that they stand on (timm and others) are imported when an extractor is made.
"""

from mmad_bank.features.efficientnet_lite import EfficientNetLite, EfficientNetLite0
from mmad_bank.features.factory import FPFHPatches, PointPatches, make_rgb_extractor, make_xyz_extractor
from mmad_bank.features.fpfh import FPFH
from mmad_bank.features.point_alignment import PointFeatureAlignment
from mmad_bank.features.point_bert import PointBERT
from mmad_bank.features.point_mae import PointMAE
from mmad_bank.features.rgb import RGBExtractor

__all__ = [
    "FPFH",
    "EfficientNetLite",
    "EfficientNetLite0",
    "FPFHPatches",
    "PointBERT",
    "PointFeatureAlignment",
    "PointMAE",
    "PointPatches",
    "RGBExtractor",
    "make_rgb_extractor",
    "make_xyz_extractor",
]
