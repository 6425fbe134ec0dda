"""The number type of networks' products, and arithmetic that does not depend on the caller's settings."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch

from mmad_bank._internal.checks import check_choice

ComputeDtype = Literal["float32", "bfloat16"]
"""Number type of a network's matrix products; what comes out of them is float32 either way."""

NetworkDtype = Literal["float32", "bfloat16", "int8"]
"""Number type of a network of convolutions of color images, which may be run in integers by OpenVINO."""


def check_compute_dtype(value: str) -> None:
    """Refuse what is no number type for a network's products."""
    check_choice(value, get_args(ComputeDtype), "compute_dtype")


def exact_float32(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which products on ``device`` keep their dtype, also inside the caller's own autocast.

    Example:
        >>> import torch
        >>> a = torch.eye(2)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), exact_float32(a.device):
        ...     (a @ a).dtype
        torch.float32
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
