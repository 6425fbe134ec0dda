"""Commands that make data sets: synth, prepare."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._options import Categories, Json, Layout, Overwrite, Units, Workers, count_workers, parse_names
from mmad_bank.cli._output import check_output_folder, emit, end, say_unread, seconds, show_progress
from mmad_bank.errors import NoneUsableError


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (synth, prepare):
        app.command()(command)


def synth(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the data set.", show_default=False)],
    size: Annotated[int, typer.Option("--image-size", help="Side of the images in pixels.")] = 256,
    train: Annotated[int, typer.Option(help="Number of normal training samples per category.")] = 30,
    validation: Annotated[int, typer.Option(help="Number of normal validation samples per category.")] = 6,
    test: Annotated[
        int,
        typer.Option(
            help="Number of test samples per category: a third normal, the others with four kinds of defects."
        ),
    ] = 36,
    categories: Categories = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples; the same seed gives the same files.")] = 0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a synthetic data set in the layout of MVTec 3D-AD: colour images, point clouds, masks of defects."""
    from mmad_bank.synthetic import write_synthetic
    from mmad_bank.synthetic.dataset import MANIFEST

    check_output_folder(out, "DIR", outputs=(MANIFEST,), overwrite=overwrite)

    begin = time.perf_counter()
    result = write_synthetic(
        out, size=size, n_train=train, n_validation=validation, n_test=test, categories=parse_names(categories),
        seed=seed, workers=count_workers(workers), overwrite=overwrite, progress=show_progress(as_json),
    )  # fmt: skip
    taken = time.perf_counter() - begin
    rows = {
        "categories": ", ".join(result["categories"]),
        "samples": f"{result['samples']:,} ({train} train, {validation} validation, {test} test a category)",
        "time": seconds(taken),
    }
    emit({"path": str(out), **result, "seconds": taken}, rows, title=f"synthesised {out}", as_json=as_json)


def prepare(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the categories.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write the prepared data set to.", show_default=False)],
    recipe: Annotated[
        Literal["auto", "m3dm", "cfm", "mdss", "eyecandies", "keep"],
        typer.Option(
            help="Preprocessing to do, by paper (auto: eyecandies for Eyecandies, else m3dm; keep: backgrounds stay)."
        ),
    ] = "auto",
    size: Annotated[
        int | None,
        typer.Option(
            "--image-size", help="Side of the prepared images in pixels (default: the recipe's).", show_default=False
        ),
    ] = None,
    categories: Categories = None,
    layout: Layout = "auto",
    units: Units = None,
    seed: Annotated[int, typer.Option(help="Seed of the search for the background plane (RANSAC).")] = 0,
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

    changes: dict[str, Any] = {"seed": seed, "units": units} | ({} if size is None else {"size": size})
    base = preparation.default_settings(dataset, layout) if recipe == "auto" else Preprocessing.recipe(recipe)
    begin = time.perf_counter()
    with going_on():
        result = preparation.prepare(
            dataset, out, replace(base, **changes), categories=parse_names(categories), layout=layout,
            workers=count_workers(workers), overwrite=overwrite, progress=show_progress(as_json),
        )  # fmt: skip
    taken = time.perf_counter() - begin
    say_unread(dataset, parse_names(categories), layout)
    for name in result.set_aside:
        print(f"set aside: {name} is gone or cannot be used now; moved to {out / SET_ASIDE}", file=sys.stderr)
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
