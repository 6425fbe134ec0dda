"""Scores over time: whether they still are what they were when they were calibrated."""

from mmad_bank.monitoring.drawing import check_drawing, figure
from mmad_bank.monitoring.drift import DriftMonitor, Finding

__all__ = ["DriftMonitor", "Finding", "check_drawing", "figure"]
