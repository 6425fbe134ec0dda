"""anomalib's Patchcore with this project's selection and search, and its checkpoints as bank files and back.

:func:`accelerate` takes a model that a program has made; :class:`Patchcore`, which needs anomalib, is one for
anomalib's command line: ``anomalib train --model mmad_bank.integrations.anomalib.Patchcore``. Written for anomalib 2.7.
"""

from __future__ import annotations

import functools
import os
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.files import replacing
from mmad_bank._internal.state_dicts import check_restricted_loading, read_torch
from mmad_bank.bank.memory_bank import MemoryBank
from mmad_bank.errors import FormatError, InputError
from mmad_bank.integrations import _patchcore_model
from mmad_bank.integrations._patchcore_model import Accelerated, Settings
from mmad_bank.integrations._rows import check_rows
from mmad_bank.ops.knn import Precision, check_precision

Model = TypeVar("Model", bound=nn.Module)

_NEEDED = ("memory_bank", "embedding_store", "nearest_neighbors", "subsample_embedding", "num_neighbors")
_BANK = "model.memory_bank"  # in a checkpoint
_FITTED = "_is_fitted"


def accelerate(model: Model, *, bank_precision: Precision = "auto", project: bool = True) -> Model:
    """Let an anomalib Patchcore select its coreset and search its memory bank with this project.

    The model is changed in place, before its fit or after it. Its weights, hyperparameters, checkpoints, callbacks and
    engine are as before; checkpoints load with and without this package. While a program compiles, traces or exports
    the model, anomalib's own search runs. A pickle, and what ``to_torch`` writes, holds a model of anomalib's own
    class, which loads where this package is not installed; a copy stays accelerated.

    From the same random numbers the coreset is anomalib's, but where its rounding in float32 decides between rows.
    Distances are those of float64, rounded; anomalib's are off by the rounding of squares of norms, which shows where
    distances are small.

    Args:
        model: ``anomalib.models.Patchcore``, or the PyTorch model within.
        bank_precision: Precision of the search copy, see :class:`mmad_bank.ops.SearchIndex`; scores do not depend on
            it.
        project: Whether to select in the random projection that anomalib makes. False selects in the features' own
            space.

    Returns:
        The model.

    Raises:
        InputError: It is no Patchcore.

    Example:
        >>> from anomalib.models import Patchcore                   # doctest: +SKIP
        >>> model = accelerate(Patchcore())                         # doctest: +SKIP
        >>> Engine().fit(model=model, datamodule=MVTecAD())         # doctest: +SKIP
    """
    settings = Settings(check_precision(bank_precision, "bank_precision"), bool(project))
    _patchcore_model.accelerate(_inner(model), settings)
    return model


def restore(model: Model) -> Model:
    """Take :func:`accelerate` back, in place.

    Returns:
        The model, of anomalib's own class.
    """
    inner = _inner(model)
    if isinstance(inner, Accelerated):
        inner.restore()
    return model


def to_bank(source: nn.Module | str | os.PathLike[str], *, extractor: str | None = None) -> MemoryBank:
    """Make a bank of a fitted model or of a checkpoint.

    ``bank.score(patches, reweight="patchcore", n_neighbors=9)`` scores as anomalib does with its default of nine
    neighbors, if the patches are its embeddings.

    Args:
        source: The model, or the checkpoint's file (``.ckpt``); nothing in it is executed, and anomalib need not be
            installed to read it.
        extractor: Name of the feature extractor, kept in the bank file.

    Raises:
        InputError: The model is not fitted; the file is missing.
        FormatError: The file is no checkpoint of a fitted Patchcore.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.ckpt"
        >>> torch.save({"state_dict": {"model.memory_bank": torch.rand(40, 8)}}, path)
        >>> len(to_bank(path))
        40
    """
    if isinstance(source, nn.Module):
        vectors = _inner(source).memory_bank
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or not len(vectors):
            raise InputError("source: expected a fitted Patchcore, found one with an empty memory bank")
        return MemoryBank(vectors.detach().float(), extractor=extractor)
    with torch.serialization.safe_globals([(str, "anomalib.PrecisionType")]):  # a word, where anomalib is not there
        state = read_torch(source, "state_dict")
    found = state.get(_BANK)
    if found is None or found.ndim != 2 or not len(found) or not found.is_floating_point():
        raise FormatError(f"{source}: expected a checkpoint of a fitted Patchcore, found no {_BANK} in it")
    check_rows(found.float(), source)
    return MemoryBank(found.float(), extractor=extractor)


def from_bank(bank: MemoryBank, model: Model) -> Model:
    """Give a model a bank's vectors, in place; it counts as fitted then.

    What a model has learnt of its scores beside the bank, thresholds and the range that they are normalized by, is of
    the bank that it had: validate it anew (``Engine.validate``).

    Args:
        bank: A bank of the model's own embeddings, without standardization.
        model: ``anomalib.models.Patchcore``, or the PyTorch model within.

    Returns:
        The model.

    Raises:
        InputError: It is no Patchcore; the bank standardizes, or its vectors have another length.
    """
    inner, vectors = _inner(model), _vectors_of(bank)
    old = inner.memory_bank
    if old.ndim == 2 and len(old) and old.shape[1] != bank.dim:
        raise InputError(f"bank: expected vectors of {old.shape[1]} values as the model has, found {bank.dim}")
    inner.memory_bank = vectors.to(old.device, old.dtype, copy=True)
    inner.embedding_store.clear()
    if hasattr(model, _FITTED):
        setattr(model, _FITTED, torch.ones_like(getattr(model, _FITTED)))
    return model


def write_checkpoint(bank: MemoryBank, like: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Write an anomalib checkpoint with a bank's vectors; all else is another checkpoint's. Needs anomalib.

    Args:
        bank: As for :func:`from_bank`.
        like: Checkpoint of a Patchcore with the backbone, layers and settings that are wanted.
        path: The file to write.

    Raises:
        InputError: A file is missing or cannot be written; the bank does not fit.
        FormatError: ``like`` is no checkpoint of a Patchcore.
        MissingExtraError: anomalib is not installed.
    """
    vectors = _vectors_of(bank)
    serialization = import_extra("anomalib", "anomalib.utils.serialization", "writing its checkpoints", "anomalib")
    if not os.path.isfile(like):
        raise InputError(f"{like}: no such checkpoint file")
    check_restricted_loading(like)
    with (
        serialization.anomalib_safe_globals(),
        decoding(like, "not a checkpoint of a Patchcore, or a truncated one", error=FormatError),
    ):
        content = torch.load(like, map_location="cpu", weights_only=True)
        old = content["state_dict"][_BANK]
    if old.ndim == 2 and len(old) and old.shape[1] != bank.dim:
        raise InputError(f"bank: expected vectors of {old.shape[1]} values as in {like}, found {bank.dim}")
    content["state_dict"][_BANK] = vectors.to("cpu", old.dtype).contiguous()
    content["state_dict"][_FITTED] = torch.tensor([True])
    with replacing(path) as partial:
        torch.save(content, partial)


def _inner(model: nn.Module) -> Any:
    """Return the PyTorch model of a Lightning module, or the model itself."""
    for found in (model, getattr(model, "model", None)):
        one = getattr(found, "_orig_mod", found)  # of torch.compile
        if isinstance(one, nn.Module) and all(hasattr(one, name) for name in _NEEDED):
            return one
    raise InputError(f"model: expected a Patchcore of anomalib 2.7, found {type(model).__name__}")


def _vectors_of(bank: MemoryBank) -> Tensor:
    if bank.standardization is not None:
        raise InputError("bank: expected one without standardization, which anomalib does not know, found one with it")
    return bank.vectors


@functools.cache
def _patchcore() -> type:
    """Return the class :class:`Patchcore`: made when it is first asked for, as its base is anomalib's."""
    module = "anomalib.models.image.patchcore.lightning_model"
    stock: Any = import_extra("anomalib", module, "its Patchcore", "anomalib").Patchcore

    class Patchcore(stock):
        """anomalib's Patchcore, accelerated: the same arguments, checkpoints and exports, see :func:`accelerate`."""

        __module__, __qualname__ = __name__, "Patchcore"

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            accelerate(self)

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            accelerate(self)

        def to_torch(self, *args: Any, **kwargs: Any) -> Any:
            """Export as anomalib's own class does: the file loads where this package is not installed."""
            twin = object.__new__(stock)
            twin.__dict__.update(self.__dict__)
            return stock.to_torch(twin, *args, **kwargs)

    return Patchcore


def __getattr__(name: str) -> Any:
    if name == "Patchcore":
        return _patchcore()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "Patchcore"]


__all__ = ["Patchcore", "accelerate", "from_bank", "restore", "to_bank", "write_checkpoint"]  # noqa: F822
