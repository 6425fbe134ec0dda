"""Commands that make data sets: synth, prepare."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mmad_bank._internal.file_names import SYNTHETIC
from mmad_bank._internal.terminal import say
from mmad_bank.cli._command import add
from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._options import Categories, Json, Layout, Overwrite, RawFolder, Units, Workers
from mmad_bank.cli._output import check_output_folder, emit, end, say_unread, seconds, show_progress
from mmad_bank.cli._values import count_workers, parse_categories
from mmad_bank.cli._words import Recipe, option
from mmad_bank.errors import NoneUsableError


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(app, synth, prepare)


def synth(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the data set.", show_default=False)],
    image_size: Annotated[int, option("--image-size", "the", "")] = 256,
    train_images: Annotated[int, option("--train-images", "per category, all normal")] = 30,
    validation_images: Annotated[int, option("--validation-images", "per category, all normal")] = 6,
    test_images: Annotated[
        int, option("--test-images", "per category: a third normal, the others with four kinds of defects")
    ] = 36,
    categories: Categories = None,
    seed: Annotated[int, option("--seed", "the samples; the same seed gives the same files")] = 0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a synthetic data set in the layout of MVTec 3D-AD: color images, point clouds, masks of defects."""
    from mmad_bank.synthetic import write_synthetic

    check_output_folder(out, "DIR", outputs=(SYNTHETIC,), overwrite=overwrite)

    begin = time.perf_counter()
    result = write_synthetic(
        out, size=image_size, n_train=train_images, n_validation=validation_images, n_test=test_images,
        categories=parse_categories(categories), seed=seed, workers=count_workers(workers), overwrite=overwrite,
        progress=show_progress(as_json),
    )  # fmt: skip
    taken = time.perf_counter() - begin
    rows = {
        "categories": ", ".join(result["categories"]),
        "samples": f"{result['samples']:,} ({train_images} train, {validation_images} validation,"
        f" {test_images} test per category)",
        "time": seconds(taken),
    }
    emit({"path": str(out), **result, "seconds": taken}, rows, title=f"synthesized {out}", as_json=as_json)


def prepare(
    dataset: RawFolder,
    out: Annotated[Path, option("--out", "Folder", ", with the prepared data set")],
    recipe: Annotated[Recipe, option("--recipe")] = "auto",
    image_size: Annotated[int | None, option("--image-size", "the prepared", " (default: the recipe's)")] = None,
    categories: Categories = None,
    layout: Layout = "auto",
    units: Units = None,
    seed: Annotated[int, option("--seed", "the search for the background plane (RANSAC)")] = 0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Remove backgrounds, keep the largest object, pad and resize: once, for a whole data set, originals untouched.

    Run it again to resume, or to take in new samples. Samples that cannot be used are named and left out. Other
    settings need another folder, or --overwrite.
    """
    from mmad_bank.data import preparation
    from mmad_bank.data.recipes import Preprocessing
    from mmad_bank.data.replacing import SET_ASIDE

    chosen = parse_categories(categories)
    changes: dict[str, Any] = {"seed": seed, "units": units} | ({} if image_size is None else {"size": image_size})
    own = recipe == "auto"
    base = preparation.default_settings(dataset, layout, categories=chosen) if own else Preprocessing.recipe(recipe)
    begin = time.perf_counter()
    with going_on():
        result = preparation.prepare(
            dataset, out, replace(base, **changes), categories=chosen, layout=layout,
            workers=count_workers(workers), overwrite=overwrite, progress=show_progress(as_json),
        )  # fmt: skip
    taken = time.perf_counter() - begin
    say_unread(dataset, chosen, layout)
    for name in result.set_aside:
        say(f"set aside: {name} is gone or cannot be used now; moved to {out / SET_ASIDE}")
    if not result.written + result.cached:
        what = f"{dataset}: expected samples, found none of {len(result.failed)} that can be used"
        raise NoneUsableError(what, result.failed)
    rows = {
        "prepared": f"{result.written:,} samples",
        "done before": f"{result.cached:,} samples",
        "left out": f"{len(result.failed):,} samples",
        "time": seconds(taken),
    }
    facts = {**result.as_json(), "left_out": result.failed, "seconds": taken}
    emit(facts, rows, title=f"prepared {out}", as_json=as_json)
    end(result.failed)
