"""Adaptation of frozen extractors' features to a data set, trained without labels: LSFA."""

from mmad_bank.adaptation.adaptor import Adaptor, FeatureAdaptation, Layer
from mmad_bank.adaptation.finetuning import FineTuning, has_transformer, train_networks
from mmad_bank.adaptation.losses import LOSSES, Compactness, FeatureQueue, Prototype
from mmad_bank.adaptation.training import train_adaptation

__all__ = [
    "LOSSES", "Adaptor", "Compactness", "FeatureAdaptation", "FeatureQueue", "FineTuning", "Layer", "Prototype",
    "has_transformer", "train_adaptation", "train_networks",
]  # fmt: skip
