"""Fusion of modalities: UFF on features (M3DM, section 3.3), DLF on scores (section 3.4), and calibrated scores."""

from mmad_bank.fusion.calibrated import CalibratedFusion, PartScales
from mmad_bank.fusion.dlf import DecisionFusion
from mmad_bank.fusion.training import train_fusion
from mmad_bank.fusion.uff import FeatureFusion

__all__ = ["CalibratedFusion", "DecisionFusion", "FeatureFusion", "PartScales", "train_fusion"]
