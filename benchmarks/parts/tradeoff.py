"""Memory against accuracy against speed: ratio, storage and index of one bank, on real features with real defects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common import Column, Options, Table
from inputs import extract_768

from mmad_bank import tuning
from mmad_bank._internal.shares import percent
from mmad_bank.synthetic import textures

MEMORY_BUDGETS_MB = (0.5, 1, 2, 5, 10, 20, 50)
FPS_BUDGETS = (2, 5, 10, 20, 50, 100)
_PATCH_RADIUS = 0.09  # a smaller defect than the default: not every bank finds it

COLUMNS = [
    Column("share", "ratio"),
    Column("index", "index"),
    Column("storage", "precision"),
    Column("vectors", "vectors", ",d"),
    Column("memory_mb", "memory MB", ".2f"),
    Column("vectors_mb", "vectors in the file MB", ".1f", detail=True),
    Column("fps", "fps", ".1f"),
    Column("patch_error", "patch error", ".2%"),
    Column("patch_error_max", "largest", ".1%", detail=True),
    Column("image_error", "image error", ".2%"),
    Column("index_patch_error", "of it the index", ".2%"),
    Column("auroc", "I-AUROC", ".3f"),
    Column("front", "front"),
]

RECOMMENDED = [
    Column("budget", "budget"),
    Column("share", "ratio"),
    Column("index", "index"),
    Column("storage", "precision"),
    Column("memory_mb", "memory MB", ".2f"),
    Column("fps", "fps", ".1f"),
    Column("patch_error", "patch error", ".2%"),
    Column("auroc", "I-AUROC", ".3f"),
]

NOTES = [
    "Errors: differences of scores from those of the exact bank of all rows, over its mean score; 'of it the index':"
    " from the exact float32 bank of the same ratio.",
    "Memory: the search copy or FAISS's index and the source rows. The float32 vectors stay in the bank file,"
    " memory-mapped and cached by the system while it has room: the exact search reads a few of them for each patch."
    " With a FAISS index the image score (m3dm) compares all of them, so there they are counted.",
    "fps: one image of 784 patches at a time, image score included, features not; median over the images, the settings"
    " of a ratio alternating. FAISS indices as mmad-bank build makes them, with FAISS's own search settings.",
    "front: no other setting is as small, as fast and as accurate, and better in one of the three.",
]


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Sweep ratio, storage and index of the bank of 80 training images (62 720 × 768); score 24 unseen images."""
    n_train, n_test = (2, 2) if options.quick else (80, 12)
    normal = extract_768(textures.texture_images(n_train))
    images, labels = test_images(n_test)
    tests = extract_768(images).reshape(len(images), -1, normal.shape[1])
    swept = tuning.sweep(normal, tests, labels=labels, rounds=options.rounds)
    title = f"Memory against accuracy: {swept.rows} × {swept.dim}, {swept.images} images of {swept.patches} patches"
    front = tuning.pareto(swept.settings)
    rows = [_row(one) | {"front": "●" if on else ""} for one, on in zip(swept.settings, front, strict=True)]
    origin = (
        f"Test images: {n_test} cut from a part of the photograph that the bank never saw, and {n_test} others of it"
        " with a scratch and a pasted patch of bricks each."
    )
    return [Table(title, COLUMNS, rows, [*NOTES, origin]), _recommendations(swept.settings)]


def test_images(n: int) -> tuple[np.ndarray, list[int]]:
    """Return ``n`` unseen images without and ``n`` with defects, (2 n, H, W, 3) uint8, and their labels."""
    unseen = textures.texture_images(2 * n, split="test")
    donors = textures.texture_images(n, texture="brick", split="test")
    defective = [
        textures.draw_scratch(textures.paste_patch(image, donor, seed=seed, radius=_PATCH_RADIUS)[0], seed=seed)[0]
        for seed, (image, donor) in enumerate(zip(unseen[n:], donors, strict=True))
    ]
    return np.concatenate([unseen[:n], np.stack(defective)]), [0] * n + [1] * n


def _row(one: tuning.Measured) -> dict[str, Any]:
    """Return all of a setting's figures, from which ``tuning.figure`` can be drawn again."""
    words = {"share": percent(one.ratio), "storage": one.precision if one.setting.is_exact else None}
    return one.as_json() | words | {"memory_mb": one.memory / 1e6, "vectors_mb": one.vector_bytes / 1e6}


def _recommendations(settings: Sequence[tuning.Measured]) -> Table:
    """Return what ``mmad-bank tune`` recommends within budgets of memory and of frames per second."""
    table = Table("Memory against accuracy: what mmad-bank tune recommends", RECOMMENDED)
    budgets: list[tuple[str, dict[str, Any]]] = [
        *((f"{megabytes:g} MB", {"memory": int(megabytes * 1e6)}) for megabytes in MEMORY_BUDGETS_MB),
        *((f"{fps} fps", {"fps": fps}) for fps in FPS_BUDGETS),
    ]
    for words, budget in budgets:
        chosen = tuning.recommend(settings, **budget)
        table.rows.append({"budget": words, "limits": budget} | ({} if chosen is None else _keep(_row(chosen))))
    table.notes = ["The smallest patch error within the budget; of equal ones the fastest, or with fps the smallest."]
    return table


def _keep(row: Mapping[str, Any]) -> dict[str, Any]:
    return {column.key: row[column.key] for column in RECOMMENDED[1:]}
