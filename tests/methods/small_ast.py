"""Small settings: what AST needs to be fitted in a moment."""

from __future__ import annotations

from typing import Any

from small_parts import SIZE

SMALL: dict[str, Any] = {
    "rgb": "efficientnet_lite0", "rgb_weights": "random", "rgb_layers": (1,), "image_size": SIZE, "grid": (8, 8),
    "coupling_blocks": 2, "teacher_width": 4, "position_channels": 4, "student_blocks": 1, "student_width": 8,
    "teacher_epochs": 3, "student_epochs": 3, "batch": 2, "lr": 1e-2,
}  # fmt: skip
