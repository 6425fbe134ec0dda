"""A model with tiles, exported to ONNX: how much memory and time a picture takes in ONNX Runtime.

    python benchmarks/exported_tiles.py [--image-size 1600 2016] [--width 4000] [--height 3000] [--model NAME]

Fits a PatchCore with tiles on a made-up surface for each size, exports it, and describes two pictures by ``rgb.onnx``,
each in a process of its own with one thread: one of the width and height, which the network resizes, and one of the
size already. Prints the bytes of the features, what the process holds before and at most, and the seconds of the second
run. Weights are random ones: they change no memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiles import TILE, surface


def main() -> int:
    """Measure every size and picture in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, nargs="+", default=[1600, 2016], help="sides of the prepared squares")
    parser.add_argument("--width", type=int, default=4000, help="width of the picture in pixels")
    parser.add_argument("--height", type=int, default=3000, help="height of the picture in pixels")
    parser.add_argument("--model", help="RGB extractor of timm, such as wide_resnet50_2 (default: the bundled one)")
    parser.add_argument("--tile", type=int, default=TILE, help="side of the tiles in pixels")
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(describe(*arguments.one)))
        return 0
    for size in arguments.image_size:
        with tempfile.TemporaryDirectory(prefix="mmad-bank-exported-") as name:
            folder = Path(name)
            export(folder, size, arguments)
            for picture in ("large", "resized"):
                print(line_of(size, folder, folder / f"{picture}.png"), flush=True)
    return 0


def export(folder: Path, size: int, arguments: argparse.Namespace) -> None:
    """Draw the pictures, and export a model of one of them."""
    from mmad_bank import exporting
    from mmad_bank.data import PicturesDataset
    from mmad_bank.methods import PatchCore

    (folder / "train").mkdir()
    surface(size, size, 0).save(folder / "train" / "0.png")
    surface(arguments.width, arguments.height, 1).save(folder / "large.png", compress_level=1)
    surface(size, size, 1).save(folder / "resized.png", compress_level=1)
    rgb = {} if arguments.model is None else {"rgb": arguments.model, "rgb_layers": None}
    cells = arguments.tile // 8
    method = PatchCore(**{
        **PatchCore.bundled_arguments(), **rgb, "rgb_weights": "random", "image_size": size, "tiles": arguments.tile,
        "grid": (cells, cells), "ratio": 1e-4, "calibration": "none",
    })  # fmt: skip
    exporting.export(method.fit(PicturesDataset([folder / "train"])), folder / "export")


def line_of(size: int, folder: Path, picture: Path) -> str:
    """Describe a picture in a process of its own; return what it took in words."""
    command = [sys.executable, __file__, "--one", str(folder / "export" / "rgb.onnx"), str(picture)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    height, width = found["picture"]
    return (
        f"image-size {size}, picture {width}×{height}: features {found['features_mib']:.0f} MiB, process"
        f" {found['before_mib']:.0f} MiB before and at most {found['peak_mib']:.0f} MiB, {found['seconds']:.1f} s"
    )


def describe(network: Path, picture: Path) -> dict[str, Any]:
    """Run a network on a picture twice in this process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
    pixels = np.array(Image.open(picture))[None]
    before = _memory("VmRSS")
    for _ in range(2):
        begin = time.perf_counter()
        features = session.run(["features"], {"picture": pixels})[0]
        seconds = time.perf_counter() - begin
    return {
        "picture": pixels.shape[1:3], "features_mib": features.nbytes / 2**20, "before_mib": before,
        "peak_mib": _memory("VmHWM"), "seconds": seconds,
    }  # fmt: skip


def _memory(field: str) -> float:
    """Return a field of the process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
