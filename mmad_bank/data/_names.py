"""Names that all layouts share, apart from what needs PyTorch."""

from __future__ import annotations

GOOD = "good"
SPLITS = ("train", "validation", "test")
