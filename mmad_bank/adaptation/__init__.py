"""Adaptation of frozen extractors' features to a data set, trained without labels: LSFA."""

from mmad_bank.adaptation.adaptor import Adaptor, FeatureAdaptation, Layer
from mmad_bank.adaptation.losses import LOSSES, Compactness, FeatureQueue, Prototype
from mmad_bank.adaptation.training import train_adaptation

__all__ = [
    "LOSSES", "Adaptor", "Compactness", "FeatureAdaptation", "FeatureQueue", "Layer", "Prototype", "train_adaptation",
]  # fmt: skip
