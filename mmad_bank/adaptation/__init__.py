"""Adaptation of frozen extractors' features to a data set, trained without labels: LSFA."""

from mmad_bank.adaptation.lsfa import Adaptor, FeatureAdaptation, FeatureQueue, train_adaptation

__all__ = ["Adaptor", "FeatureAdaptation", "FeatureQueue", "train_adaptation"]
