"""A Patchcore model that selects and searches with this project, made from anomalib's class without importing it.

The class of a model is replaced by one that is derived from it (:func:`accelerate`): weights, buffers, settings and
everything that others see of the model stay. Where a program traces or exports it, its own class searches.
"""

from __future__ import annotations

import copy
import functools
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmad_bank import ops
from mmad_bank._internal.checks import FLOATS
from mmad_bank._internal.locks import ForkedOpen
from mmad_bank._internal.sending import sent_by_value
from mmad_bank._internal.torch_state import plain_torch
from mmad_bank.errors import InputError
from mmad_bank.ops.knn import Precision

_OURS = "_mmad_bank"  # the attribute that holds a model's settings and its index
_MAKING = ForkedOpen()  # held while an index is made


@dataclass
class Settings:
    """How a model selects and searches, and what it searches in.

    Attributes:
        bank_precision: Precision of the search copy.
        project: Whether to select in anomalib's random projection.
        made: The memory bank, its changes and its address when the index was made, and the index; None where the bank
            is no bank that can be searched.
    """

    bank_precision: Precision = "auto"
    project: bool = True
    made: tuple[Tensor, tuple[Any, ...], ops.SearchIndex | None] | None = None

    def fresh(self) -> Settings:
        """Return the same without the index."""
        return Settings(self.bank_precision, self.project)


class Accelerated(nn.Module):
    """What stands before anomalib's class of a Patchcore model."""

    _stock: type[nn.Module]
    _mmad_bank: Settings
    memory_bank: Tensor
    embedding_store: list[Tensor]

    def subsample_embedding(self, sampling_ratio: float, embeddings: Tensor | None = None) -> None:
        """Select the coreset of the features that were collected, exactly."""
        del embeddings  # anomalib ignores it too
        if not self.embedding_store:
            return super().subsample_embedding(sampling_ratio)  # type: ignore[misc]  # which says so
        rows = torch.vstack(self.embedding_store)
        self.embedding_store.clear()
        self.memory_bank = rows[_select(rows, sampling_ratio, self._stock, self._mmad_bank.project)]
        return None

    def nearest_neighbors(self, embedding: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor]:
        """Return distances and rows of the memory bank: (n,) for one neighbor, (n, k) for more."""
        found = _search(self, embedding, n_neighbors)
        if found is None:
            found = super().nearest_neighbors(embedding=embedding, n_neighbors=n_neighbors)  # type: ignore[misc]
        return found

    def index(self) -> ops.SearchIndex | None:
        """Return the index of the memory bank as it is now: made anew if the bank was replaced or changed in place.

        None where the bank is not finite.
        """
        bank, settings = self.memory_bank, self._mmad_bank
        # Tensors of inference mode do not count their changes; outside of it they cannot be changed in place.
        version = -1 if bank.is_inference() else bank._version  # noqa: SLF001 - PyTorch has no public name for it
        state = (version, bank.shape, bank.data_ptr())  # share_memory moves it without a change
        with _MAKING:
            made = settings.made
            if made is None or made[0] is not bank or made[1] != state:
                settings.made = made = (bank, state, _made(bank.detach(), settings.bank_precision))
        return made[2]

    def restore(self) -> None:
        """Become a model of anomalib's own class again."""
        self.__class__ = self._stock  # type: ignore[assignment]
        self.__dict__.pop(_OURS)

    def _load_from_state_dict(self, *args: Any, **more: Any) -> None:
        self._mmad_bank.made = None
        super()._load_from_state_dict(*args, **more)

    def _without_ours(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != _OURS}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle a model of anomalib's own class: it loads where this package is not installed."""
        del protocol
        return object.__new__, (self._stock,), self._without_ours()

    def __copy__(self) -> Accelerated:
        return self._twin(self._without_ours())

    def __deepcopy__(self, memo: dict[int, Any]) -> Accelerated:
        return self._twin(copy.deepcopy(self._without_ours(), memo))

    def _twin(self, state: dict[str, Any]) -> Accelerated:
        twin = object.__new__(type(self))
        twin.__setstate__(state)
        twin.__dict__[_OURS] = self._mmad_bank.fresh()
        return twin


def accelerate(model: nn.Module, settings: Settings) -> None:
    """Change the class of a model, or the settings of one that is accelerated."""
    if not isinstance(model, Accelerated):
        stock: Any = type(model)
        model.__class__ = _accelerated(stock)
    model.__dict__[_OURS] = settings


@functools.cache
def _accelerated(stock: type[nn.Module]) -> type[Accelerated]:
    """Return the class that takes a model's class's place; it has its name and module."""
    own = {
        "_stock": stock,
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
    }
    return sent_by_value(type(stock.__name__, (Accelerated, stock), own))


def _select(rows: Tensor, ratio: float, stock: type[nn.Module], project: bool) -> Tensor:
    """Return int64 (n,) rows: those of anomalib's loop, from the same random numbers, but for ties of its rounding."""
    sampler = _sampler_class(stock)(embedding=rows, sampling_ratio=ratio)
    space = sampler.model.fit(rows).transform(rows) if project else rows
    start = torch.randint(high=len(rows), size=(1,), device=space.device)
    place = space if space.device.type in ("cpu", "cuda") else space.cpu()
    with plain_torch():
        return ops.k_center_greedy(place, sampler.coreset_size, start=int(start)).to(rows.device)


def _sampler_class(stock: type[nn.Module]) -> Any:
    """Return the sampler that anomalib's model takes: the name in its module, also where a program derives from it."""
    names = (getattr(sys.modules[one.__module__], "KCenterGreedy", None) for one in stock.__mro__)
    return next(name for name in names if name is not None)


def _search(model: Accelerated, embedding: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """Return distances and rows; None where anomalib's own search has to do it."""
    bank = model.memory_bank
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not (_can_search(embedding) and _can_search(bank)):
        return None
    if embedding.device != bank.device or embedding.shape[1] != bank.shape[1] or not 1 <= k <= len(bank):
        return None
    if torch.is_grad_enabled() and (embedding.requires_grad or bank.requires_grad):
        return None
    try:
        index = model.index()
        if index is None:
            return None
        with plain_torch():
            distances, rows = index.search(embedding.detach(), k)
    except InputError:  # NaN or infinity, with which anomalib computes in its own way
        return None
    distances = distances.to(embedding.dtype)
    return (distances[:, 0], rows[:, 0]) if k == 1 else (distances, rows)


def _can_search(rows: Tensor) -> bool:
    """Tell real values from those that an export passes through the model, and from kinds and places unknown here."""
    return (
        type(rows) is Tensor
        and rows.layout == torch.strided
        and rows.ndim == 2
        and rows.numel() > 0
        and rows.dtype in FLOATS
        and rows.device.type in ("cpu", "cuda")
    )


def _made(bank: Tensor, precision: Precision) -> ops.SearchIndex | None:
    try:
        with plain_torch():
            return ops.SearchIndex(bank, precision=precision)
    except InputError:  # NaN or infinity
        return None
