"""Methods: detectors of anomalies with one interface (:class:`Method`).

Importing the package is light: a method's module loads when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily
from mmad_bank.errors import FormatError, InputError, did_you_mean

_METHODS = {
    "patchcore": "PatchCore", "btf": "BTF", "shape_guided": "ShapeGuided", "m3dm": "M3DM", "cfm": "CFM", "lsfa": "LSFA",
    "mdss": "MDSS", "ast": "AST",
}  # fmt: skip
_EXPORTS = {
    **{cls: name for name, cls in _METHODS.items()},
    "Gaussian": "prediction", "Method": "base", "Parameter": "base", "Part": "base", "Prediction": "base",
    "PartVerdict": "part_verdicts", "Reason": "base", "fit_categories": "shared", "judge_parts": "part_verdicts",
    "train_shared": "shared",
}  # fmt: skip
__all__ = [
    "AST", "BTF", "CFM", "LSFA", "M3DM", "MDSS", "Gaussian", "Method", "Parameter", "Part", "PartVerdict", "PatchCore",
    "Prediction", "Reason", "ShapeGuided", "fit_categories", "judge_parts", "load", "method_class", "names",
    "parameters", "train_shared",
]  # fmt: skip

if TYPE_CHECKING:
    from mmad_bank.methods.ast import AST
    from mmad_bank.methods.base import Method, Parameter, Part, Prediction, Reason
    from mmad_bank.methods.btf import BTF
    from mmad_bank.methods.cfm import CFM
    from mmad_bank.methods.lsfa import LSFA
    from mmad_bank.methods.m3dm import M3DM
    from mmad_bank.methods.mdss import MDSS
    from mmad_bank.methods.part_verdicts import PartVerdict, judge_parts
    from mmad_bank.methods.patchcore import PatchCore
    from mmad_bank.methods.prediction import Gaussian
    from mmad_bank.methods.shape_guided import ShapeGuided
    from mmad_bank.methods.shared import fit_categories, train_shared


def names() -> tuple[str, ...]:
    """Name the methods, as the command line and saved models do.

    Example:
        >>> "m3dm" in names()
        True
    """
    return tuple(_METHODS)


def method_class(name: str) -> type[Method]:
    """Return a method's class by its name.

    Raises:
        InputError: There is no such method.
    """
    if name not in _METHODS:
        raise InputError(f"method: expected one of {', '.join(_METHODS)}, found {name!r}{did_you_mean(name, _METHODS)}")
    return getattr(importlib.import_module(f"mmad_bank.methods.{name}"), _METHODS[name])


def parameters(name: str) -> list[Parameter]:
    """Describe the arguments of a method's constructor, in its order: what is declared with them.

    In Python all but the first two, the RGB network and its weights, are keyword arguments; on the command line they
    are values of ``--set``.

    Args:
        name: Name of the method, as :func:`names` says.

    Raises:
        InputError: There is no such method.

    Example:
        >>> ratio = next(one for one in parameters("patchcore") if one.name == "ratio")
        >>> ratio.type, ratio.default, ratio.limits
        ('number', 0.1, 'above 0 and at most 1, such as 0.1 for 10%')
        >>> ratio.documentation
        'Share of the training patches that a bank keeps.'
    """
    return method_class(name).parameters()


def load(folder: str | os.PathLike[str], device: str = "cpu", *, trust_index: bool = False) -> Method:
    """Load a model that a method saved. Nothing in it is executed.

    Args:
        folder: Folder that :meth:`Method.save` wrote.
        device: Device to put it on.
        trust_index: Whether FAISS may read the indices of its banks, see :meth:`mmad_bank.MemoryBank.load`; by default
            they are built anew from the vectors.

    Raises:
        InputError: There is no model.
        FormatError: It is damaged, foreign, newer, or of a method that this version does not have.

    Example:
        >>> model = load("bagel.model")  # doctest: +SKIP
        >>> model.predict(sample).score  # doctest: +SKIP
        1.84
    """
    from mmad_bank._internal.folders import recover_folder
    from mmad_bank.methods.model_folder import read_manifest

    recover_folder(folder)
    name = str(read_manifest(folder)["method"])
    if name not in _METHODS:
        raise FormatError(f"{folder}: a saved {name}; this version has {', '.join(_METHODS)}")
    return method_class(name).load(folder, device, trust_index=trust_index)


__getattr__, __dir__ = lazily(__name__, _EXPORTS, submodules=(*_METHODS, "base", "options", "prediction", "shared"))
