"""Frames per second of the extractors of color images, by the library that runs them on the CPU and the number type.

With ``--data`` also what PatchCore's results are worth with each, on pictures in MVTec AD's layout: its bank is made of
features of the same library and type.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import Column, Table, alternate, working_folder
from torch import Tensor, nn

from mmad_bank.errors import MmadBankError
from mmad_bank.evaluation import FUSED, evaluate
from mmad_bank.exporting import networks, writing
from mmad_bank.features import EfficientNetLite, RGBExtractor, make_rgb_extractor
from mmad_bank.features.factory import BUNDLED_STAGES
from mmad_bank.methods import PatchCore
from parts.real import categories, prepared, splits

Extractor = EfficientNetLite | RGBExtractor
OWN = "PyTorch, float32"
_ONNX = "ONNX Runtime, float32"
_COLUMNS = [
    Column("network", "extractor"),
    Column("what", "runtime"),
    Column("fps", "frames/s", ".1f"),
    Column("median_ms", "ms per picture", ".1f"),
    Column("ratio", "× PyTorch's time", ".2f"),
    Column("difference", "largest difference", ".1e"),
]
_NOTES = (
    "From a prepared picture (8-bit) to patch features, one at a time. Difference to PyTorch's float32, relative to the"
    " largest feature.",
    "OpenVINO is what runtime='openvino' runs, with the compute_dtype that is named; ONNX Runtime runs what"
    " mmad-bank export writes, without the preparation. Weights of timm's networks are random, those of their batch"
    " normalizations one, and int8's ranges are measured on noise, which tells its time and not its accuracy.",
)
_LIMIT = 0.3
_TYPES = ("float32", "bfloat16", "int8")


def check(arguments: argparse.Namespace) -> None:
    """Refuse a data set that nothing can be measured on.

    Raises:
        InputError: It has no labeled test split with good and defective pictures.
    """
    if arguments.data is not None:
        for category in categories(arguments):
            splits(arguments, category)


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Time every extractor by every library that is installed, in turn."""
    del limits
    table = Table("Extractors by runtime", _COLUMNS, headline=True)
    with working_folder(arguments.workdir, "runtimes") as folder:
        for name, network, size in _extractors(quick=arguments.quick):
            table.rows += _measured(name, network, size, folder, arguments.rounds)
            print(f"  {name}", file=sys.stderr, flush=True)
    table.notes = [*_NOTES, f"{torch.get_num_threads()} threads."]
    return [table] if arguments.data is None else [table, _accuracy(arguments)]


def _accuracy(arguments: argparse.Namespace) -> Table:
    """Fit and evaluate PatchCore with the bundled network by every library and number type, on every category."""
    columns = [
        Column("category", "category"), Column("what", "runtime"), Column("fps", "extractor, frames/s", ".1f"),
        Column("image_auroc", "I-AUROC", ".3f"), Column("pixel_auroc", "P-AUROC", ".3f"),
        Column("aupro", "AUPRO@30", ".3f"), Column("lost", "I-AUROC lost to float32", ".4f"),
    ]  # fmt: skip
    table = Table(f"Accuracy by runtime on {arguments.data.resolve().name}, bundled features", columns, headline=True)
    table.notes = [
        "PatchCore with its bundled settings, without a calibration. Bank and test pictures are described by the same"
        " library and type. One selection each: where features are rounded, other rows are selected.",
        "Extractor: from prepared test pictures to features, one at a time, median of the interleaved rounds.",
    ]
    try:
        for category in categories(arguments):
            table.rows += _accuracy_rows(category, arguments)
    except MmadBankError as error:
        sys.exit(f"error: {error}")
    return table


def _accuracy_rows(category: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    train, _, test = splits(arguments, category)
    settings: dict[str, Any] = {**PatchCore.bundled_arguments(), "calibration": "none"}
    if arguments.quick:
        settings |= {"rgb": "efficientnet_lite0", "image_size": 64, "grid": (8, 8)}
    has_openvino = importlib.util.find_spec("openvino") is not None
    ways = [("torch", kind) for kind in _TYPES[:2]] + [("openvino", kind) for kind in _TYPES if has_openvino]
    models, found, samples = {}, {}, None
    for runtime, kind in ways:
        what = f"{'PyTorch' if runtime == 'torch' else 'OpenVINO'}, {kind}"
        models[what] = PatchCore(**settings, runtime=runtime, compute_dtype=kind).fit(train)
        samples = samples or list(prepared(models[what], test))
        found[what] = evaluate(models[what], samples, limits=(_LIMIT,)).metrics[FUSED]
        print(f"  {category}: {what}", file=sys.stderr, flush=True)
    assert samples is not None
    pictures = [sample.rgb[None] for sample in samples[: arguments.rounds] if sample.rgb is not None]
    turns = {what: iter([*pictures[:2], *pictures] * 2) for what in models}
    work = {
        what: lambda what=what, network=model.extractors_.networks["rgb"]: network(next(turns[what]))
        for what, model in models.items()
    }
    timings = alternate(work, arguments.rounds, warmup=2)
    return [
        {
            "category": category, "what": what, "fps": 1 / timings.of(what)["median"],
            "image_auroc": own.image_auroc, "pixel_auroc": own.pixel_auroc, "aupro": own.aupro[_LIMIT],
            "lost": None if what == OWN else found[OWN].image_auroc - own.image_auroc,
        }
        for what, own in found.items()
    ]  # fmt: skip


def _extractors(*, quick: bool) -> list[tuple[str, Extractor, int]]:
    """Return the extractors of the bundled settings and of the papers, with their sizes of pictures."""
    if quick:
        return [("EfficientNet-Lite0", make_rgb_extractor("efficientnet_lite0", "random", grid=(8, 8)), 64)]
    torch.manual_seed(0)
    lite = make_rgb_extractor("efficientnet_lite2.reflect", layers=BUNDLED_STAGES, grid=(40, 40), image_size=320)
    wide = RGBExtractor("wide_resnet50_2", grid=(28, 28))
    for layer in wide.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.fill_(1.0)  # timm begins with zeros behind residual branches, which no trained network has
    return [
        ("EfficientNet-Lite2, 320 pixels (bundled)", lite, 320),
        ("WideResNet-50-2, 224 pixels (PatchCore)", wide, 224),
        ("ViT-B/8, 224 pixels (M3DM, CFM)", RGBExtractor("vit_base_patch8_224", grid=(28, 28)), 224),
    ]


def _measured(name: str, network: Extractor, size: int, folder: Path, rounds: int) -> list[dict[str, Any]]:
    picture = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    contestants = _contestants(network, picture, folder)
    timings = alternate(contestants, rounds, warmup=2)
    expected = network(picture)
    rows = []
    for what, work in contestants.items():
        own = timings.of(what)
        difference = float((work() - expected).abs().max() / expected.abs().max())
        rows.append(
            {
                "network": name, "what": what, "fps": 1 / own["median"], "median_ms": own["median"] * 1e3,
                "ratio": timings.ratio(what, OWN), "difference": None if what == OWN else difference, **own,
            }
        )  # fmt: skip
    return rows


def _contestants(network: Extractor, picture: Tensor, folder: Path) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {OWN: lambda: network(picture)}
    if importlib.util.find_spec("openvino") is not None:
        transformer = isinstance(network, RGBExtractor) and network.is_transformer
        for kind in _TYPES[:2] if transformer else _TYPES:
            found[f"OpenVINO, {kind}"] = _by_openvino(network, kind, picture)
    if all(importlib.util.find_spec(package) is not None for package in ("onnx", "onnxscript", "onnxruntime")):
        found[_ONNX] = _by_onnx_runtime(network, picture, folder)
    return found


def _by_openvino(network: Extractor, kind: str, picture: Tensor) -> Callable[[], Tensor]:
    own = copy.deepcopy(network).by("openvino")
    if kind == "int8":
        own.take_int8()
        own.measure_int8(torch.randint(0, 256, (8, *picture.shape[1:]), dtype=torch.uint8))
    own.compute_dtype = kind
    return lambda: own(picture)


def _by_onnx_runtime(network: Extractor, picture: Tensor, folder: Path) -> Callable[[], Tensor]:
    import onnxruntime

    own = networks.Network(
        "rgb", networks.in_float32(network), {"images": picture.expand(2, -1, -1, -1).contiguous()},
        axes={"images": {0: "batch"}},
    )  # fmt: skip
    writing.save(writing.onnx_of(own), folder / "rgb.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / "rgb.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, {"images": picture.numpy()})[0])
