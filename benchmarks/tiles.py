"""PatchCore on large pictures, with tiles and without: memory, time, and how much maps jump at the tiles' borders.

    python benchmarks/tiles.py [--width 4000] [--height 3000] [--image-size 2016] [--images 5] [--picture PATH]

Draws pictures of a made-up surface, fits the bundled PatchCore on good ones in a process of its own for each setting,
and scores a good one and one with a spot of a 70th of the height. Prints for each setting the largest memory of the
process, the seconds, both scores, and the mean step of the good picture's patch scores across the borders of tiles, in
units of the mean step elsewhere; without tiles at the same places. ``--json`` writes the same to a file, and
``--picture`` the maps of the good picture and of the one with the spot, a row per setting.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TILE, CELL = 224, 8
SETTINGS: dict[str, dict[str, Any]] = {
    "tiles, overlap 32": {"tiles": TILE, "tile_overlap": 32},
    "tiles, no overlap": {"tiles": TILE, "tile_overlap": 0},
    "whole": {},
}


def main() -> int:
    """Measure every setting in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4000, help="width of the pictures in pixels")
    parser.add_argument("--height", type=int, default=3000, help="height of the pictures in pixels")
    parser.add_argument("--image-size", type=int, default=2016, help="side of the prepared pictures in pixels")
    parser.add_argument("--images", type=int, default=5, help="number of good pictures to fit on")
    parser.add_argument("--ratio", type=float, default=0.01, help="share of the patches that the bank keeps")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--picture", type=Path, help="file to write the maps to")
    parser.add_argument("--one", choices=SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments)))
        return 0
    with tempfile.TemporaryDirectory(prefix="mmad-bank-tiles-") as name:
        folder = Path(name)
        draw_all(folder, arguments.width, arguments.height, arguments.images)
        rows = {setting: _measured_apart(setting, folder) for setting in SETTINGS}
        if arguments.picture is not None:
            _draw(arguments.picture, folder)
    for setting, row in rows.items():
        print(
            f"{setting:<18}  peak {row['peak_mib']:6.0f} MiB  fit {row['fit_s']:6.1f} s"
            f"  predict {row['predict_s']:5.1f} s  score good {row['good']:.2f}, spot {row['spot']:.2f}"
            f"  step at borders × {row['step']:.2f}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"image_size": arguments.image_size, "settings": rows}, indent=2) + "\n")
    return 0


def draw_all(folder: Path, width: int, height: int, images: int) -> None:
    """Write pictures of a surface: good ones to fit on, a good one and one with a spot to score."""
    (folder / "train").mkdir()
    for number in range(images):
        surface(width, height, number).save(folder / "train" / f"{number}.png", compress_level=1)
    surface(width, height, images).save(folder / "good.png", compress_level=1)
    surface(width, height, images, spot=True).save(folder / "spot.png", compress_level=1)


def surface(width: int, height: int, seed: int, *, spot: bool = False) -> Image.Image:
    """Draw a gray surface with grain of two sizes and a weave, perhaps with a bright spot."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    coarse = Image.fromarray(rng.normal(0, 24, (height // 8, width // 8)).astype(np.float32))
    values = 120 + 30 * np.sin(x / 23 + rng.uniform(0, 6)) * np.sin(y / 31 + rng.uniform(0, 6))
    values += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    values += rng.normal(0, 14, (height, width)).astype(np.float32)
    if spot:
        values[(y - 0.4 * height) ** 2 + (x - 0.6 * width) ** 2 < (height / 140) ** 2] += 70
    gray = values.clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([gray] * 3, axis=-1))


def _measured_apart(setting: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", setting, "--folder", str(folder)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit and predict in this process."""
    from mmad_bank.data import open_dataset
    from mmad_bank.methods import PatchCore

    tiles = SETTINGS[arguments.one]
    cells = TILE // CELL if tiles else arguments.image_size // CELL
    own = {"image_size": arguments.image_size, "grid": (cells, cells), "ratio": arguments.ratio, "calibration": "none"}
    method = PatchCore(**{**PatchCore.bundled_arguments(), **own, **tiles})
    begin = time.perf_counter()
    method.fit(open_dataset(arguments.folder / "train", layout="pictures"))
    fitted = time.perf_counter()
    good, spot = (method.predict(arguments.folder / f"{name}.png") for name in ("good", "spot"))
    row = {"fit_s": fitted - begin, "predict_s": (time.perf_counter() - fitted) / 2}
    row |= {"good": good.score, "spot": spot.score, "step": step_at_borders(good, arguments.image_size, tiles)}
    for name, prediction in (("good", good), ("spot", spot)):
        np.save(arguments.folder / f"{arguments.one}-{name}.npy", prediction.map.numpy()[::8, ::8])
    return {**row, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def step_at_borders(prediction: Any, image_size: int, tiles: dict[str, Any]) -> float:
    """Return the mean step of patch scores from column to column at tiles' borders, in units of that elsewhere."""
    from mmad_bank.features.tiles import starts

    part = prediction.parts["rgb"]
    steps = np.abs(np.diff(part.scores[part.shown[0]].numpy(), axis=1)).mean(axis=0)
    side = starts(image_size, TILE, tiles.get("tile_overlap", 32))
    borders = sorted({start // CELL for start in side[1:]} | {(start + TILE) // CELL for start in side[:-1]})
    at = np.zeros(len(steps), bool)
    at[[border - 1 for border in borders]] = True
    return float(steps[at].mean() / steps[~at].mean())


def _draw(path: Path, folder: Path) -> None:
    """Write all maps into one picture, each row in its own gray scale."""
    rows = []
    for setting in SETTINGS:
        pair = np.concatenate([np.load(folder / f"{setting}-{name}.npy") for name in ("good", "spot")], axis=1)
        rows.append((pair / pair.max() * 255).astype(np.uint8))
    Image.fromarray(np.concatenate(rows)).save(path)


if __name__ == "__main__":
    sys.exit(main())
