"""Arguments in the wrong order, told by what they are: one line says how they belong."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from mmad_bank._internal.file_names import MODEL
from mmad_bank.errors import InputError

_CLOUDS = (".tif", ".tiff", ".pcd", ".ply", ".npy")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".jp2", ".pgm", ".ppm", ".avif")
_LARGEST_HEADER = 100_000_000  # bytes


def is_model(path: Path) -> bool:
    """Tell whether a folder holds a saved model, or one per category."""
    return (path / MODEL).is_file() or (path.is_dir() and any(path.glob(f"*/{MODEL}")))


def is_bank(path: Path) -> bool:
    """Tell whether a file is a bank, by its header alone."""
    if not path.is_file():  # a pipe waits for whoever writes into it
        return False
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _LARGEST_HEADER:
                return False
            table = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError):
        return False
    metadata = table.get("__metadata__") if isinstance(table, dict) else None
    return isinstance(metadata, dict) and "mmad_bank" in metadata


def check_bank_first(command: str, bank: Path, features: Sequence[Path]) -> None:
    """Refuse FEATURES BANK where BANK FEATURES belong, and a folder where the bank belongs.

    Raises:
        InputError: A bank is among the features, and the first argument is none; or that is a folder.
    """
    banks = [path for path in features if is_bank(path)]
    if banks and not is_bank(bank):
        others = [path for path in (bank, *features) if path != banks[0]]
        raise _swapped("BANK FEATURES", "FEATURES BANK", command, banks[0], *others)
    if is_model(bank):
        kind = "a saved model" if (bank / MODEL).is_file() else "a folder of saved models"
        raise InputError(
            f"{bank}: is {kind}; expected a bank file as build writes it. A model scores images by mmad-bank predict,"
            " and a data set by mmad-bank evaluate"
        )
    if bank.is_dir():
        raise InputError(f"{bank}: expected a bank file as build writes it, found a folder")
    check_features(features)


def check_features(features: Sequence[Path]) -> None:
    """Refuse a bank where feature dumps belong.

    Raises:
        InputError: There is one.
    """
    for path in features:
        if is_bank(path):
            raise InputError(
                f"{path}: is a memory bank; expected the feature dumps that a bank is built from"
                " (mmad-bank score BANK FEATURES, mmad-bank info BANK)"
            )


def check_model_first(command: str, model: Path, others: Sequence[Path], expected: str) -> None:
    """Refuse a model among the other arguments where it belongs first; ``expected`` names them all.

    Raises:
        InputError: It is there, and the first argument is no model.
    """
    models = [path for path in others if is_model(path)]
    if models and not is_model(model):
        rest = [path for path in (model, *others) if path != models[0]]
        first, *names = expected.split()
        raise _swapped(expected, " ".join((*names, first)), command, models[0], *rest)


def check_method_first(method: str, dataset: Path, names: Sequence[str]) -> None:
    """Refuse DATASET METHOD where METHOD DATASET belong.

    Raises:
        InputError: The second argument is a method, and the first is none.
    """
    if str(dataset).lower() in names and method.lower() not in names:
        raise _swapped("METHOD DATASET", "DATASET METHOD", "fit", dataset, method)


def check_pair(rgb: Path, xyz: Path) -> None:
    """Refuse XYZ RGB, and two pictures, where RGB XYZ belong.

    Raises:
        InputError: The second file is a picture, by its suffix.
    """
    if xyz.suffix.lower() not in _PICTURES:
        return
    if rgb.suffix.lower() in _CLOUDS:
        raise InputError(f"RGB XYZ: expected the picture first, found the point cloud: give {xyz} {rgb}")
    raise InputError(
        f"RGB XYZ: expected pairs of a picture and its point cloud, or pictures alone, found {xyz} after {rgb}"
    )


def _swapped(expected: str, found: str, command: str, *words: object) -> InputError:
    line = shlex.join(["mmad-bank", command, *map(str, words)])
    return InputError(f"expected {expected}, found {found}: {line} ...")
