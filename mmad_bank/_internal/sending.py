"""Objects whose memory the native core points to, on their way to other processes.

What goes through ``multiprocessing`` (processes, pools, queues, ``DataLoader``) is pickled by its ``ForkingPickler``,
for which PyTorch moves the storage of a CPU tensor to shared memory, in place: the addresses that an index holds would
lead nowhere afterwards. So the tensors of these objects are sent as bytes, and stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.arrays import array_of

AnyClass = TypeVar("AnyClass", bound=type)


def sent_by_value(cls: AnyClass) -> AnyClass:
    """Send objects of a class to other processes with copies of their CPU tensors, as a decorator.

    Copied are those in what the objects are reduced to, and in its dictionaries and tuples. Other pickles and copies
    are as without it. A derived class needs it as well.
    """
    ForkingPickler.register(cls, _reduced)
    return cls


class _Packed(NamedTuple):
    """A tensor's bytes."""

    values: np.ndarray
    dtype: torch.dtype
    shape: tuple[int, ...]


def _reduced(thing: Any) -> tuple[Any, ...]:
    make, arguments, *more = thing.__reduce_ex__(4)
    return _restored, (make, _packed(arguments), _packed(more[0]) if more else None)


def _restored(make: Callable[..., Any], arguments: Any, state: Any) -> Any:
    thing = make(*_unpacked(arguments))
    if state is None:
        return thing
    found = _unpacked(state)
    if hasattr(thing, "__setstate__"):
        thing.__setstate__(found)
    else:
        thing.__dict__.update(found)
    return thing


def _packed(value: Any) -> Any:
    if type(value) is Tensor and value.device.type == "cpu":
        plain = value.detach().contiguous()
        return _Packed(array_of(plain.reshape(-1).view(torch.uint8)), value.dtype, tuple(value.shape))
    if isinstance(value, dict):
        return type(value)((key, _packed(one)) for key, one in value.items())
    return tuple(map(_packed, value)) if type(value) is tuple else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, _Packed):
        return torch.from_numpy(value.values).view(value.dtype).reshape(value.shape)
    if isinstance(value, dict):
        return type(value)((key, _unpacked(one)) for key, one in value.items())
    return tuple(map(_unpacked, value)) if type(value) is tuple else value
