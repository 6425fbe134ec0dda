"""Fusion of modalities: UFF on features (M3DM, section 3.3) and DLF on scores (section 3.4)."""

from mmad_bank.fusion.dlf import DecisionFusion
from mmad_bank.fusion.training import train_fusion
from mmad_bank.fusion.uff import FeatureFusion

__all__ = ["DecisionFusion", "FeatureFusion", "train_fusion"]
