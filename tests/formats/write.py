"""Write a tiny bank, several banks and a tiny model of every method, and what they say of two samples.

    python tests/formats/write.py FOLDER           # what lies in tests/formats/VERSION was written so, by that version
    python tests/formats/write.py FOLDER --check   # load what is there, and compare what it says to the bit

Networks have random weights: a file of another version is to be loaded here, not to be good. The second command is for
one machine and one number of threads: elsewhere sums are rounded otherwise, and tests/formats/test_formats.py compares
within that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmad_bank import MemoryBank, MultiBank, methods
from mmad_bank.data import Preprocessing, Sample

SIZE = 48
RGB: dict[str, Any] = {"rgb": "efficientnet_lite0", "rgb_weights": "random", "rgb_layers": (1,), "grid": (6, 6)}
BOTH: dict[str, Any] = {**RGB, "xyz": "fpfh"}
BANKS: dict[str, dict[str, Any]] = {
    "plain": {}, "standardized": {"standardize": True}, "projected": {"projection_dim": 4}
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "patchcore": RGB,
    "btf": RGB,
    "m3dm": {**BOTH, "uff_steps": 2, "uff_batch": 2, "uff_patches": 8, "bank_precision": "half"},
    "lsfa": {**BOTH, "adaptation_steps": 2, "adaptation_batch": 2, "queue_size": 50},
    "cfm": {**BOTH, "epochs": 1, "batch": 2, "pixels_per_image": 50, "map_size": 24, "normalize_for": "p_auroc"},
    "mdss": {
        "rgb_weights": "random", "pdn_width": 4, "channels": 8, "teacher_steps": 2, "teacher_batch": 2,
        "student_steps": 2, "student_batch": 2, "patch_size": 60, "coverage": (2.0, 3.0), "sdf_steps": 2,
        "sdf_batch": 2, "sdf_queries": 10, "sdf_width": 8,
    },
}  # fmt: skip


def a_part(seed: int, split: str = "train") -> Sample:
    """Make a prepared sample: a bumpy disc in the middle, its background black and unmeasured."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / 1000
    height = 0.3 + 0.004 * np.sin(x * (200 + 40 * rng.random())) * np.cos(y * 250)
    xyz, rgb = np.stack([x + 0.01, y + 0.01, height]), rng.random((3, SIZE, SIZE)) * 0.5 + 0.2
    off = (x - 0.024) ** 2 + (y - 0.024) ** 2 > 0.016**2
    xyz[:, off] = rgb[:, off] = 0
    return Sample(
        torch.from_numpy(rgb).float(), torch.from_numpy(xyz).float(), torch.zeros(SIZE, SIZE, dtype=torch.bool),
        id=f"part/{split}/good/{seed:03d}", split=split, preparation=Preprocessing.recipe("cfm", size=SIZE),
    )  # fmt: skip


def features(seed: int, images: int = 3) -> np.ndarray:
    """Return patch features (images, 16, 8) float32."""
    return np.random.default_rng(seed).normal(size=(images, 16, 8)).astype(np.float32)


def write(folder: Path, models: list[str]) -> None:
    """Write the banks and some of the models, and what they say."""
    for name, options in BANKS.items():
        MemoryBank.build(features(0), ratio=0.5, **options).save(folder / f"{name}.safetensors")
    several = {"rgb": MemoryBank.build(features(1), size=9), "xyz": MemoryBank.build(features(2), size=7)}
    MultiBank(several).save(folder / "several")
    for name in models:
        method = methods.method_class(name)(image_size=SIZE, **MODELS[name])
        held_out = [a_part(seed, "validation") for seed in range(20, 23)]
        method.fit([a_part(seed) for seed in range(3)], validation=held_out)
        method.save(folder / name)
    np.savez_compressed(folder / "said.npz", **said(folder))


def said(folder: Path) -> dict[str, np.ndarray]:
    """Load everything in a folder, and return what it says of the same queries and samples."""
    answers: dict[str, np.ndarray] = {}
    banks = {name: MemoryBank.load(folder / f"{name}.safetensors") for name in BANKS}
    several = MultiBank.load(folder / "several")
    banks |= {f"several-{name}": several[name] for name in ("rgb", "xyz")}
    for name, bank in banks.items():
        scores = bank.score(features(9, 2))
        answers |= {f"{name}/patch": scores.patch.numpy(), f"{name}/image": scores.image.numpy()}
        answers |= {f"{name}/nearest": scores.nearest.numpy(), f"{name}/rows": bank.source_rows.numpy()}
    for name in filter(lambda name: (folder / name).is_dir(), MODELS):
        model = methods.load(folder / name)
        for seed in (40, 41):
            prediction = model.predict(a_part(seed, "test"))
            answers[f"{name}/{seed}/score"] = np.float32(prediction.score)
            answers[f"{name}/{seed}/map"] = prediction.map.numpy()
            for part, own in prediction.parts.items():
                answers[f"{name}/{seed}/{part}"] = own.scores.numpy()
    return answers


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(MODELS), help="those to write (mdss takes 3 MB)")
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    arguments = parser.parse_args()
    if not arguments.check:
        arguments.folder.mkdir(parents=True)
        write(arguments.folder, arguments.models.split(","))
        return
    with np.load(arguments.folder / "said.npz") as kept:
        now, other = said(arguments.folder), []
        for name in kept:
            if not np.array_equal(kept[name], now[name]):
                other.append(f"{name}: differs by up to {np.abs(kept[name] - now[name]).max():.3g}")
        print("\n".join(other) or f"{len(kept.files)} arrays, all the same to the bit")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()
