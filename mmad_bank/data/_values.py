"""Arrays that a program hands in as a sample's image, cloud and mask: checked, converted and copied, once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmad_bank.data._images import finite_points, is_defect
from mmad_bank.errors import InputError

# Half a step of 8 bits: what resampling and rounding add to the ends of 0 to 1, and no more.
_SLACK = 0.5 / 255
_FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0}


def as_array(value: Any, name: str) -> np.ndarray:
    """Return a tensor's or array's values on the CPU, without its gradient, in this machine's byte order.

    Raises:
        InputError: It is something else, or a tensor that holds no plain values.
    """
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise InputError(f"{name}: expected a dense tensor with values, found {_describe(value)}")
        value = value.detach().cpu().resolve_conj().resolve_neg()
        return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())
    if isinstance(value, np.ndarray):
        # The points that a masked array hides were not measured, whatever stands below its mask.
        if isinstance(value, np.ma.MaskedArray):
            value = value.filled(np.nan if value.dtype.kind == "f" else 0)
        return value.astype(value.dtype.newbyteorder("="), copy=False)
    raise InputError(f"{name}: expected a torch.Tensor or a NumPy array, found {_describe(value)}")


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {value.layout} tensor on {value.device.type}" + (", quantized" if value.is_quantized else "")
    return "None" if value is None else type(value).__name__


def _check_planes(array: np.ndarray, name: str) -> None:
    """Refuse what is not (3, H, W), with a word for the usual other orders."""
    shape = array.shape
    if len(shape) == 3 and shape[0] == 3 and min(shape) > 0:
        return
    advice = ""
    if len(shape) == 3 and shape[-1] in (3, 4) and min(shape) > 0:
        advice = "; channels come first: permute(2, 0, 1)" + (", without alpha" if shape[-1] == 4 else "")
    elif len(shape) == 4 and shape[:2] == (1, 3):
        advice = "; one sample is no batch: take [0]"
    elif name.endswith("rgb") and (len(shape) == 2 or shape[:1] == (1,)):
        advice = "; a grey image is one with three equal channels: expand(3, -1, -1)"
    raise InputError(f"{name}: expected shape (3, H, W), found {shape}{advice}")


def rgb_tensor(value: Any, name: str = "rgb") -> torch.Tensor:
    """Return a colour image as (3, H, W), float32, from 0 to 1, in memory of its own.

    Args:
        value: (3, H, W) of a tensor or an array: floats of any width from 0 to 1, uint8 from 0 to 255, or uint16 from
            0 to 65535.
        name: Name of the argument, for the error's line.

    Raises:
        InputError: It has another shape, type or range, or holds NaN.
    """
    array = as_array(value, name)
    _check_planes(array, name)
    if array.dtype.name in _FULL_SCALE:
        full = np.float32(_FULL_SCALE[array.dtype.name])
        return torch.from_numpy(np.divide(array, full, dtype=np.float32, order="C"))
    if array.dtype.kind != "f":
        raise InputError(f"{name}: expected floats from 0 to 1, uint8 or uint16, found {array.dtype}")
    with np.errstate(over="ignore"):
        pixels = array.astype(np.float32, order="C")
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{name}: expected values from 0 to 1, found NaN or infinity")
    if low < -_SLACK or high > 1 + _SLACK:
        advice = "" if low < 0 else "; divide by 255, or hand in uint8" if high <= 255 else ""
        raise InputError(f"{name}: expected values from 0 to 1, found {low:.4g} to {high:.4g}{advice}")
    return torch.from_numpy(pixels.clip(0, 1, out=pixels))


def xyz_tensor(value: Any, name: str = "xyz") -> torch.Tensor:
    """Return a point cloud as (3, H, W), float32, zeros where nothing was measured, in memory of its own.

    Args:
        value: (3, H, W), floats of any width; zeros, NaN or infinity where nothing was measured.
        name: Name of the argument, for the error's line.

    Raises:
        InputError: It has another shape or type, or no measured point.
    """
    array = as_array(value, name)
    _check_planes(array, name)
    if array.dtype.kind != "f":
        raise InputError(f"{name}: expected floats in metres, found {array.dtype}; scale the sensor's integers first")
    points = finite_points(array, axis=0)
    if not (points != 0).all(axis=0).any():
        raise InputError(f"{name}: expected measured points, found none in {points.shape[1]}×{points.shape[2]} pixels")
    return torch.from_numpy(points)


def mask_tensor(value: Any, name: str = "mask") -> torch.Tensor:
    """Return a mask as (H, W), bool, in memory of its own: what is neither zero nor NaN is a defect.

    Raises:
        InputError: It has another shape, or its values are no numbers.
    """
    array = as_array(value, name)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name}: expected shape (H, W), found {array.shape}")
    if array.dtype.kind not in "buif":
        raise InputError(f"{name}: expected numbers, zero where nothing is wrong, found {array.dtype}")
    return torch.from_numpy(is_defect(array))
