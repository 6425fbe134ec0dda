"""Argument checks of the public functions: one line that names the argument, what was found, what was expected."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import torch

from mmad_bank.errors import InputError

ArrayLike = torch.Tensor | np.ndarray

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def as_float_tensor(value: Any, name: str, *, ndim: int | tuple[int, ...] = 2) -> torch.Tensor:
    """Return ``value`` as a contiguous float32 tensor on its own device, or say what is wrong with it.

    float16 and bfloat16 widen exactly; float64 is rounded to float32 (the engine's definition of a feature).
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f" or value.dtype.itemsize > 8:  # PyTorch has no long double
            raise InputError(f"{name}: expected floating-point values, found NumPy dtype {value.dtype}")
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise InputError(f"{name}: expected an array without masked values, found {np.ma.count_masked(value)}")
        if any(stride < 0 for stride in value.strides) or not value.dtype.isnative:
            value = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # read-only (memory-mapped) arrays: we never write to them
            value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name}: expected a torch.Tensor or a NumPy array, found {type(value).__name__}")
    if value.layout != torch.strided:
        raise InputError(f"{name}: expected a dense tensor, found {value.layout}")
    if value.dtype not in FLOATS:
        raise InputError(f"{name}: expected floating-point values, found {value.dtype}")
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if value.ndim not in wanted:
        shapes = " or ".join(f"{n}-D" for n in wanted)
        raise InputError(f"{name}: expected {shapes} array, found shape {tuple(value.shape)}")
    return value.detach().resolve_neg().to(torch.float32).contiguous()


def as_features(value: Any, name: str = "features") -> torch.Tensor:
    """Return ``value`` as a non-empty (N, D) float32 tensor."""
    tensor = as_float_tensor(value, name, ndim=2)
    if tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise InputError(f"{name}: expected at least one row and one column, found shape {tuple(tensor.shape)}")
    return tensor


def check_finite(rows: torch.Tensor, name: str, *, place: Callable[[int], str] = "row {}".format) -> None:
    """Raise an error that names the first row holding NaN or infinity, by the words of ``place`` for its number.

    A row that is not finite has a sum that is not (infinities of both signs give NaN). A finite row may overflow, so
    the elements of suspicious rows are looked at one by one.
    """
    suspicious = ~torch.isfinite(rows.sum(dim=-1))
    if not bool(suspicious.any()):
        return
    bad = ~torch.isfinite(rows).all(dim=-1)
    if bool(bad.any()):
        raise InputError(f"{name}: {place(int(bad.int().argmax()))} holds NaN or infinity; expected finite values")


def check_choice(value: object, choices: Iterable[str], name: str) -> None:
    """Raise an error unless a value is one of the choices.

    Example:
        >>> check_choice("cubic", ("zero", "edge"), "pad")
        Traceback (most recent call last):
        mmad_bank.errors.InputError: pad: expected one of zero, edge, found 'cubic'
    """
    known = tuple(choices)
    if value not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, found {value!r}")


def check_index(value: int, name: str, low: int, high: int, why: str) -> int:
    """Return ``value`` as an int within [low, high], or raise an error that says ``why`` the limit is there."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{name}: expected an integer, found {value!r}")
    if not low <= value <= high:
        raise InputError(f"{name}: expected {low} to {high} ({why}), found {value}")
    return int(value)


def check_rate(value: float, name: str) -> float:
    """Return a share above 0 and below 1 as a float, or say what is wrong with it.

    Example:
        >>> check_rate(1.0, "false_alarm_rate")
        Traceback (most recent call last):
        mmad_bank.errors.InputError: false_alarm_rate: expected a number above 0 and below 1, such as 0.01, found 1.0
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
        raise InputError(f"{name}: expected a number above 0 and below 1, such as 0.01, found {value!r}")
    return float(value)


def check_number(value: float, name: str, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """Return a finite number above one limit and not below another as a float, or say what is wrong with it.

    Example:
        >>> check_number(0, "bandwidth", above=0)
        Traceback (most recent call last):
        mmad_bank.errors.InputError: bandwidth: expected a number above 0, found 0
    """
    fits = not isinstance(value, bool) and isinstance(value, Real) and least <= float(value) < math.inf
    if not fits or float(value) <= above:
        limit = f" above {above:g}" if above > -math.inf else f", at least {least:g}" if least > -math.inf else ""
        raise InputError(f"{name}: expected a number{limit}, found {value!r}")
    return float(value)


@contextmanager
def naming_bad_rows(name: str) -> Iterator[None]:
    """Put the argument's name before the native core's word about a row that it cannot use."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


@contextmanager
def naming_long_row(
    rows: torch.Tensor, called: str, name: str, place: Callable[[int], str], error: type[InputError] = InputError
) -> Iterator[None]:
    """Name the row whose squared distances would not fit float32: the core counts in the rows that it was given.

    Args:
        rows: (n, D), of which some or all are given to the core.
        called: Name of the argument in the core's word.
        name: Name to put in its place.
        place: Function that says which row one of a number in ``rows`` is.
        error: Class of the error.
    """
    try:
        yield
    except InputError as raised:
        row, found, words = str(raised).partition(" has a norm ")
        if not found or not row.startswith(f"{called}: row "):
            raise
        raise error(f"{name}: {place(int(rows.double().norm(dim=1).argmax()))}{found}{words}") from raised
