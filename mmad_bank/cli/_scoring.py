"""The work of ``mmad-bank score``: a dump scored a few images at a time."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmad_bank._files import replacing
from mmad_bank._progress import progress_bar
from mmad_bank.bank import FeatureDump, MemoryBank, Scores
from mmad_bank.errors import InputError
from mmad_bank.scoring import Reweight

_ROWS_AT_ONCE = 16384
_N_LISTED = 5


def patches_of_an_image(dump: FeatureDump, patches: int | None) -> int:
    """Find how many patches an image of the dump has.

    Args:
        dump: The features.
        patches: For (N, D) files; default: a file is one image.

    Raises:
        InputError: Files disagree with each other or with ``patches``, or N is no multiple of ``patches``.
    """
    first = dump.sources[0]
    expected = patches if patches is not None else first.patches or first.rows
    if expected < 1:
        raise InputError(f"--patches: expected at least 1, found {expected}")
    for source in dump.sources:
        found = source.patches or (expected if patches is not None else source.rows)
        if found != expected:
            raise InputError(f"{source.file}: expected images of {expected} patches, found {found}")
        if source.rows % expected:
            raise InputError(f"{source.file}: expected a multiple of {expected} rows (--patches), found {source.rows}")
    return expected


def score_images(
    bank: MemoryBank,
    dump: FeatureDump,
    patches: int | None,
    reweight: Reweight,
    neighbors: int | None,
    *,
    progress: bool = False,
) -> Scores:
    """Score all images of a dump; in memory are a few images' features and the scores."""
    if dump.dim != bank.dim:
        raise InputError(f"features: expected vectors of length {bank.dim} as in the bank, found {dump.dim}")
    per_image = patches_of_an_image(dump, patches)
    step = max(1, _ROWS_AT_ONCE // per_image) * per_image
    parts: list[Scores] = []
    done = 0
    with progress_bar("scoring", len(dump) // per_image) if progress else nullcontext(lambda done: None) as report:
        for part in dump.parts:
            for first in range(0, part.source.rows, step):
                rows = part.read(first, min(step, part.source.rows - first))
                images = rows.view(-1, per_image, dump.dim)
                parts.append(Scores(*(x.cpu() for x in bank.score(images, reweight=reweight, n_neighbors=neighbors))))
                done += len(images)
                report(done)
    return Scores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def save_scores(path: Path, scores: Scores) -> None:
    """Write the arrays ``patch`` (B, P) and ``image`` (B,) float32 and ``nearest`` (B, P) int64 to an .npz file."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, patch=scores.patch.numpy(), image=scores.image.numpy(), nearest=scores.nearest.numpy())


def summarise(bank: MemoryBank, dump: FeatureDump, scores: Scores) -> tuple[dict[str, Any], dict[str, str]]:
    """Return JSON-able values, and the same for people: counts, the spread of the scores, the highest and why."""
    n_images, n_patches = scores.patch.shape
    image = scores.image.double()
    spread = {"min": float(image.min()), "mean": float(image.mean()), "max": float(image.max())}
    order = image.argsort(descending=True, stable=True)[:_N_LISTED].tolist()
    worst = scores.patch[order].argmax(dim=1)
    nearest = scores.nearest[order, worst]
    highest = []
    for row, patch, vector, origin in zip(order, worst.tolist(), nearest, bank.provenance(nearest), strict=True):
        highest.append(
            {"image": row, "score": float(image[row]), "patch": patch, "nearest": int(vector),
             **{f"origin_{name}": value for name, value in origin._asdict().items()}}
        )  # fmt: skip
    result = {"images": n_images, "patches": n_patches, "dim": dump.dim, "vectors": len(bank), "image_scores": spread}
    lines = [
        f"image {entry['image']}: {entry['score']:.4g}, patch {entry['patch']}, nearest to {_place(entry)}"
        for entry in highest
    ]
    rows = {
        "images": f"{n_images:,} of {n_patches:,} patches, {dump.dim} dimensions",
        "bank": f"{len(bank):,} vectors",
        "image scores": f"{spread['min']:.4g} to {spread['max']:.4g}, mean {spread['mean']:.4g}",
        "highest": "\n".join(lines),
    }
    return {**result, "highest": highest}, rows


def _place(entry: dict[str, Any]) -> str:
    """Word where a bank vector came from."""
    if entry["origin_image"] is None:
        return f"row {entry['origin_row']} of {entry['origin_file']}"
    return f"image {entry['origin_image']}, patch {entry['origin_patch']} of {entry['origin_file']}"
