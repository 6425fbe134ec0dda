"""Feature extractors: images or point clouds in, patch features (B, P, D) out.

The packages that they stand on (timm and others) are imported when an extractor is made.
"""

from mmad_bank.features.efficientnet_lite import EfficientNetLite0
from mmad_bank.features.point_mae import PointMAE

__all__ = ["EfficientNetLite0", "PointMAE"]
