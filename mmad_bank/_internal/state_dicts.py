"""Weights in files: read without running code from them, matched to a module by name and shape; and written."""

from __future__ import annotations

import math
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.tensor_files import write_tensors
from mmad_bank.errors import FormatError, InputError

_SHOWN = 4  # names listed in a message
_REPEATED = 1 << 20  # bytes that a tensor may have whose values are in the file once only
_SAFE_TORCH = (2, 10)  # the first PyTorch without a known hole in weights_only

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def save_state(module: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write a module's weights as safetensors into the file that is there, see :func:`write_tensors`.

    Raises:
        OSError: The file cannot be written.
    """
    write_tensors(path, module.state_dict(), metadata)


def load_state(module: AnyModule, path: str | os.PathLike[str], key: str | None = None) -> AnyModule:
    """Load a module's weights from what :func:`save_state` wrote, or from a checkpoint, see :func:`read_torch`.

    Returns:
        The module.

    Raises:
        InputError: The file is missing or cannot be read.
        FormatError: It is no checkpoint, or of another architecture; the module is unchanged then.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "layer.safetensors"
        >>> save_state(nn.Linear(2, 1), file)
        >>> load_state(nn.Linear(2, 1), file)
        Linear(in_features=2, out_features=1, bias=True)
    """
    load_matching(module, read_torch(path, key), path)
    return module


def read_torch(
    path: str | os.PathLike[str], key: str | None = None, *, optional: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors of a state dict that ``torch.save`` wrote, on the CPU; nothing in the file is executed.

    Tensors that are sparse or quantized are left out, and those that a file holds a few bytes of and repeats.

    Args:
        path: The file. ``.safetensors`` is read too, and needs no ``key``.
        key: Entry of the saved dictionary that holds the state dict; None if the file is the state dict.
        optional: Entries that may hold it; the first that is there does.

    Raises:
        InputError: The file is missing or cannot be read.
        FormatError: It is no checkpoint, asks to run code, or lacks the key.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    value = _load(file)
    if key is None and isinstance(value, Mapping):
        key = next((name for name in optional if name in value), None)
    if key is not None:
        if not isinstance(value, Mapping) or key not in value:
            found = _shown(value) if isinstance(value, Mapping) else type(value).__name__
            raise FormatError(f"{path}: expected a checkpoint with the key {key!r}, found {found}")
        value = value[key]
    if not isinstance(value, Mapping):
        raise FormatError(f"{path}: expected a state dict, found {type(value).__name__}")
    return {str(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor) and _is_plain(tensor)}


def _is_plain(tensor: Tensor) -> bool:
    """Say whether a tensor is numbers in memory: not sparse, not quantized, and not a few bytes seen as terabytes."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    nbytes = tensor.numel() * tensor.element_size()
    return nbytes <= max(tensor.untyped_storage().nbytes(), _REPEATED)


def load_matching(module: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load the entries that the module has and leave the others of ``state`` alone.

    Raises:
        FormatError: An entry is missing, has another shape or kind of number, or is not finite; the module is unchanged
            then.
    """
    wanted = module.state_dict()
    # Batch normalisation counts its updates; nothing here reads the count, and older files lack it.
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    missing = [name for name in needed if name not in state]
    kind = type(module).__name__
    if len(missing) == len(needed):
        raise FormatError(f"{path}: a checkpoint for another architecture than {kind}: it holds {_shown(state)}")
    if missing:
        raise FormatError(f"{path}: {len(missing)} of {kind}'s {len(needed)} entries are missing: {_shown(missing)}")
    for name, tensor in wanted.items():
        if name in state and state[name].shape != tensor.shape:
            raise FormatError(
                f"{path}: expected {name} of shape {tuple(tensor.shape)} as this {kind} has,"
                f" found {tuple(state[name].shape)}"
            )
        if name in state:
            _check_values(state[name], tensor, f"{path}: expected {name}")
    module.load_state_dict({name: state.get(name, tensor) for name, tensor in wanted.items()})


def _check_values(found: Tensor, wanted: Tensor, what: str) -> None:
    """Refuse values of another kind of number than a module has, and what is no number: both would be taken over."""
    if found.is_floating_point() != wanted.is_floating_point() or found.is_complex():
        kinds = [str(one.dtype).removeprefix("torch.") for one in (wanted, found)]
        raise FormatError(f"{what} of kind {kinds[0]}, found {kinds[1]}")
    whole = found if found.element_size() > 1 else found.float()  # of 8 bits no kind can be asked
    if found.is_floating_point() and not bool(whole.isfinite().all()):
        raise FormatError(f"{what} to be finite, found NaN or infinity in it")


def outlines(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what a safetensors file holds, without its values, and the text beside it.

    Returns:
        Tensors on the device ``meta`` by name, those of a single value read; and the file's metadata.

    Raises:
        FormatError: It is no safetensors file, or a truncated one.
    """
    from safetensors import safe_open

    with (
        decoding(path, "not a safetensors file, or a truncated one", error=FormatError),
        safe_open(path, "pt") as opened,
    ):
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no mapping
        single = {name: opened.get_tensor(name) for name, shape in shapes.items() if math.prod(shape) == 1}
        state = {name: single.get(name, torch.empty(shape, device="meta")) for name, shape in shapes.items()}
        return state, opened.metadata() or {}


def _shown(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else "nothing"


def check_restricted_loading(path: str | os.PathLike[str]) -> None:
    """Refuse a PyTorch file where PyTorch's restricted loading has known holes, through which a file could run code.

    Raises:
        InputError: PyTorch is older than 2.10 (CVE-2025-32434 until 2.5.1, CVE-2026-24747 before 2.10).
    """
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found is None or (int(found[1]), int(found[2])) < _SAFE_TORCH:
        raise InputError(
            f"{path}: not read, because PyTorch {torch.__version__} has holes through which such a file can run code"
            f" (CVE-2025-32434, CVE-2026-24747); upgrade to torch>={_SAFE_TORCH[0]}.{_SAFE_TORCH[1]}, or take a"
            " .safetensors file"
        )


def _load(file: Path) -> Any:
    check_restricted_loading(file)
    with decoding(file, "not a PyTorch checkpoint, or a truncated one", error=FormatError):
        try:
            with warnings.catch_warnings(), _numpy_scalars():
                warnings.simplefilter("ignore")  # PyTorch's remarks on pickle protocols; a refusal says enough
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise FormatError(
                f"{file}: not read, because it is no checkpoint or holds more than tensors (loading it could run code)"
            ) from error


@contextmanager
def _numpy_scalars() -> Iterator[None]:
    """Let NumPy numbers through, which published checkpoints keep beside the weights as their best accuracy.

    ``weights_only`` refuses what it does not know; a NumPy scalar is a dtype and bytes, and runs nothing. PyTorch
    before 2.5 has no such list, and refuses those files.
    """
    if not hasattr(torch.serialization, "safe_globals"):
        yield
        return
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    names = ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]
    allowed: list[Any] = [np.dtype, *dtypes, *((scalar, name) for name in names)]
    with torch.serialization.safe_globals(allowed):
        yield


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    with decoding(file, "not a safetensors file, or a truncated one", error=FormatError):
        return load_file(file)
