"""Arithmetic that does not depend on what the caller set up for its own networks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


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
