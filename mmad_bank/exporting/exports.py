"""The folder of an exported model, and what its manifest says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmad_bank
from mmad_bank._internal.file_names import EXPORT
from mmad_bank._internal.folders import replacing_folder
from mmad_bank._internal.manifest import check_format, read_json
from mmad_bank._internal.progress import doing
from mmad_bank.errors import InputError
from mmad_bank.exporting.composing import comparison_of, composition_of, modalities_of
from mmad_bank.exporting.decisions import decision_of
from mmad_bank.exporting.networks import Network, networks_of
from mmad_bank.exporting.preparing import WINDOW, preparation_graph
from mmad_bank.exporting.writing import TOLERANCE, difference, interface, onnx_of, save, with_preparation
from mmad_bank.methods.bank_method import BankMethod

if TYPE_CHECKING:
    from mmad_bank.methods import Method

_FORMAT = "mmad-bank export"
_VERSION = 1


def export(method: Method, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Write a fitted method's networks to ONNX, its banks beside them, and ``export.json``, the whole set or nothing.

    Of methods with pictures (PatchCore, BTF, M3DM, LSFA, CFM) the extractor is ``rgb.onnx``. Where the model keeps the
    background, the preparation of a picture is in it: its input is a picture (1, H, W, 3) of any size, 8-bit RGB; its
    outputs are the patch features (1, P, D) and the window of those that show the picture. Elsewhere the background is
    removed by the point cloud, so its input are prepared squares (B, 3, S, S). Of Point-MAE and Point-BERT it is
    ``xyz-groups.onnx``, which takes the groups of a cloud: sampling them is left to the program. CFM's mappings are
    ``mapping-rgb.onnx`` and ``mapping-xyz.onnx``, the halves of M3DM's fusion ``fusion-xyz.onnx`` and
    ``fusion-rgb.onnx``, an adaptor of point features ``adaptor-xyz.onnx``, MDSS's branches ``differences.onnx`` and
    ``signed-distance.onnx``.

    Each network is run in ONNX Runtime and compared with PyTorch. Products are float32's.

    Args:
        method: A fitted method.
        folder: Folder to write; an export that is there is replaced.

    Returns:
        What ``export.json`` says.

    Raises:
        InputError: The method is not fitted, has no network that ONNX can hold, differs in ONNX Runtime by more than
            :data:`TOLERANCE`, or the folder holds something else or cannot be written.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.

    Example:
        >>> from mmad_bank.methods import load
        >>> export(load("bottle.model"), "bottle.onnx")["networks"]["rgb"]["file"]  # doctest: +SKIP
        'rgb.onnx'
    """
    method.check_fitted()
    _check_replaceable(Path(folder))
    networks = list(networks_of(method))
    with replacing_folder(folder) as into:
        written = {one.name: _write(one, method, into) for one in networks}
        content = {
            "format": _FORMAT, "version": _VERSION, "mmad_bank": mmad_bank.__version__, "method": method.name,
            "networks": written, "preparation": method.preprocessing_ and method.preprocessing_.as_json(),
            "modalities": modalities_of(method), "banks": _write_banks(method, into),
            "comparison": comparison_of(method), "decision": decision_of(method),
            "arguments": json.loads(json.dumps(method.arguments())),
            "calibration": method.calibration_ and method.calibration_.as_json(),
            "false_alarm_rate": None if method.calibration_ is None
            else method.calibration_.own.rate(method.false_alarm_rate),
            "roi": method.roi_ and method.roi_.as_json(),
        }  # fmt: skip
        (into / EXPORT).write_text(json.dumps(content, indent=2) + "\n")
    return content


def _write(network: Network, method: Method, folder: Path) -> dict[str, Any]:
    """Write a network, compare it, and put the preparation before it; return what the manifest says of it."""
    path = folder / f"{network.name}.onnx"
    with doing(f"writing {path.name}"):
        model = onnx_of(network)
        save(model, path)
    with doing(f"comparing {path.name} with PyTorch"):
        found = difference(path, network)
    settings = method.preprocessing_
    prepares = network.takes_pictures and settings is not None and settings.background == "keep"
    if prepares:
        assert settings is not None
        assert settings.size is not None
        assert network.grid is not None
        model = with_preparation(model, preparation_graph(settings, settings.size, network.grid))
        save(model, path)
    facts = {
        "file": path.name, **interface(model), "prepares": prepares, "largest_difference": found,
        "tolerance": TOLERANCE,
    }  # fmt: skip
    if network.grid is not None:
        facts["grid"] = list(network.grid)
    return {**facts, "window": WINDOW} if prepares else facts


def _write_banks(method: Method, folder: Path) -> dict[str, Any]:
    """Write the banks of a method that has some, a file for each; return what the manifest says of them."""
    if not isinstance(method, BankMethod):
        return {}
    facts = {}
    for name, bank in method.banks_.items():
        file = f"bank-{name}.safetensors"
        with doing(f"writing {file}"):
            bank.save(folder / file)
        rule = json.loads(json.dumps(method.rule_of(name)))
        facts[name] = {"file": file, **rule, "features": composition_of(method, name)}
    return facts


def _check_replaceable(target: Path) -> None:
    """Refuse to replace a folder that holds anything but an export."""
    if not target.is_dir() or not os.listdir(target):
        return
    if not (target / EXPORT).is_file():
        raise InputError(f"{target}: expected a new or empty folder or an export to replace, found another folder")
    check_format(read_json(target / EXPORT), str(target / EXPORT), _FORMAT, _VERSION)
