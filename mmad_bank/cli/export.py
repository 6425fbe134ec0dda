"""The command that writes a model for programs without Python: export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mmad_bank._internal.file_names import EXPORT
from mmad_bank._internal.progress import doing
from mmad_bank.cli._command import add
from mmad_bank.cli._options import Json, Overwrite, TrustIndex
from mmad_bank.cli._output import check_output_folder, emit, seconds, size
from mmad_bank.cli._words import option
from mmad_bank.cli.evaluation import ModelFolder


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, export)


def export(
    model: ModelFolder,
    out: Annotated[Path, option("--out", "Folder", ", with export.json, networks as .onnx and banks as .safetensors")],
    trust_index: TrustIndex = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a model's networks to ONNX and its banks beside them, for programs without Python.

    The extractor of pictures (of patchcore, btf, m3dm, lsfa and cfm) has the preparation of a picture in it, where the
    model keeps the background. Networks of point clouds take groups of points, those of mdss prepared squares and
    patches of points. Each network is compared with PyTorch.
    """
    from mmad_bank import exporting, methods

    check_output_folder(out, "--out", outputs=[EXPORT], inputs=[model], overwrite=overwrite)
    begin = time.perf_counter()
    with doing(f"loading {model}"):
        method = methods.load(model, trust_index=trust_index)
    made = exporting.export(method, out)
    taken = time.perf_counter() - begin
    files = [*made["networks"].values(), *made["banks"].values()]
    result = {
        "path": str(out), **{name: made[name] for name in ("method", "networks", "banks")},
        "bytes": {one["file"]: (out / one["file"]).stat().st_size for one in files}, "seconds": taken,
    }  # fmt: skip
    emit(result, [*_rows(result).items(), ("time", seconds(taken))], title=f"exported to {out}", as_json=as_json)


def _rows(result: dict[str, Any]) -> dict[str, str]:
    """Return the files in words, by name."""
    rows = {}
    for one in result["networks"].values():
        takes = "pictures" if one["prepares"] else ", ".join(one["inputs"])
        rows[one["file"]] = (
            f"{size(result['bytes'][one['file']])}, takes {takes}, at most {one['largest_difference']:.1e} from PyTorch"
        )
    for one in result["banks"].values():
        rows[one["file"]] = f"{size(result['bytes'][one['file']])}, scores {one['grid'][0]}×{one['grid'][1]} patches"
    return rows
