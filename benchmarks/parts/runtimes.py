"""Frames per second of the extractors of color images, by the library that runs them on the CPU."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import Column, Table, alternate, working_folder
from torch import Tensor

from mmad_bank.exporting import networks, writing
from mmad_bank.features import EfficientNetLite, RGBExtractor, make_rgb_extractor
from mmad_bank.features.factory import BUNDLED_STAGES

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
    "OpenVINO is what runtime='openvino' runs, with compute_dtype 'float32' or 'bfloat16'; ONNX Runtime runs what"
    " mmad-bank export writes, without the preparation. Weights of timm's networks are random.",
)


def check(arguments: argparse.Namespace) -> None:
    """Nothing that could be asked for is refused."""
    del arguments


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Time every extractor by every library that is installed, in turn."""
    del limits
    table = Table("Extractors by runtime", _COLUMNS, headline=True)
    with working_folder(arguments.workdir, "runtimes") as folder:
        for name, network, size in _extractors(quick=arguments.quick):
            table.rows += _measured(name, network, size, folder, arguments.rounds)
            print(f"  {name}", file=sys.stderr, flush=True)
    table.notes = [*_NOTES, f"{torch.get_num_threads()} threads."]
    return [table]


def _extractors(*, quick: bool) -> list[tuple[str, Extractor, int]]:
    """Return the extractors of the bundled settings and of the papers, with their sizes of pictures."""
    if quick:
        return [("EfficientNet-Lite0", make_rgb_extractor("efficientnet_lite0", "random", grid=(8, 8)), 64)]
    torch.manual_seed(0)
    lite = make_rgb_extractor("efficientnet_lite2.reflect", layers=BUNDLED_STAGES, grid=(40, 40), image_size=320)
    return [
        ("EfficientNet-Lite2, 320 pixels (bundled)", lite, 320),
        ("WideResNet-50-2, 224 pixels (PatchCore)", RGBExtractor("wide_resnet50_2", grid=(28, 28)), 224),
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
        exact = network.by("openvino")
        found["OpenVINO, float32"] = lambda: exact(picture)
        rounded = network.by("openvino")
        rounded.compute_dtype = "bfloat16"
        if isinstance(network, RGBExtractor):
            found["OpenVINO, bfloat16"] = lambda: rounded(picture)
    if all(importlib.util.find_spec(package) is not None for package in ("onnx", "onnxscript", "onnxruntime")):
        found[_ONNX] = _by_onnx_runtime(network, picture, folder)
    return found


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
