"""Commands that use a fitted model: evaluate, predict."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmad_bank._files import check_not_current, replacing
from mmad_bank._json import json_text
from mmad_bank._progress import doing, progress_bar, within
from mmad_bank.cli._options import (
    Batch,
    Categories,
    Category,
    DatasetFolder,
    Device,
    Json,
    Layout,
    Overwrite,
    TrustIndex,
    Units,
    check_device,
    parse_names,
)
from mmad_bank.cli._output import (
    are_unfinished,
    check_output_folder,
    check_outputs,
    command_line,
    emit,
    end,
    is_unfinished,
    seconds,
    show_progress,
    unfinished,
    unfinished_outputs,
)
from mmad_bank.cli._swapped import check_model_first, check_picture_first
from mmad_bank.errors import InputError, NoneUsableError, did_you_mean

if TYPE_CHECKING:
    from mmad_bank.data import Sample
    from mmad_bank.methods import Method, Prediction

ModelFolder = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Folder of a saved model, or of one model per category.", show_default=False),
]
Force = Annotated[
    bool, typer.Option("--force", help="Score data that were prepared otherwise, or of another category, too.")
]
_EXAMPLES = 2
_WRITTEN = ("score.json", "map.npy", "image.png", "overlay.png")
"""Of each sample that is predicted."""
_NO_FRAME = (
    "prepared by an older version, which did not note the pictures' sizes: the map is in the prepared square's pixels;"
    " prepare the data again for maps in the pictures'"
)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (evaluate, predict):
        app.command()(command)


def evaluate(
    model: ModelFolder,
    dataset: DatasetFolder,
    categories: Categories = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder to write an HTML report to, REPORT/index.html.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, with all results.", show_default=False)] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Markdown file to write, with the tables.", show_default=False)
    ] = None,
    batch: Batch = 1,
    layout: Layout = "auto",
    units: Units = None,
    trust_index: TrustIndex = False,
    device: Device = "cpu",
    force: Force = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score a test split: I-AUROC, P-AUROC and AUPRO of the result, of each bank and of each kind of defect."""
    check_model_first("evaluate", model, [dataset], "MODEL DATASET")
    from mmad_bank import methods
    from mmad_bank.data import open_dataset
    from mmad_bank.evaluation import Summary
    from mmad_bank.evaluation import evaluate as run

    target = str(check_device(device))
    outputs = (out, markdown, report)  # the folders of files are there: the note goes beside one of them
    job: dict[str, Any] = {"evaluate": [str(path.resolve()) for path in (model, dataset)], "categories": categories}
    job |= {"units": units, "outputs": [path and str(path.resolve()) for path in outputs]}
    mine = overwrite or are_unfinished(outputs, job)
    check_outputs({"--out": out, "--markdown": markdown}, inputs=(model, dataset), overwrite=mine)
    page = _open_report(report, mine, model, dataset)
    chosen = _choose_models(model, dataset, parse_names(categories), layout)
    splits = {name: open_dataset(dataset, name, "test", layout, units=units) for name in chosen}
    evaluations = []
    for number, (name, folder) in enumerate(chosen.items(), 1):
        with within(name, number, len(chosen)):
            with doing(f"loading {folder}"):
                method = methods.load(folder, target, trust_index=trust_index)
            evaluation = run(
                method, splits[name], batch=batch, examples=_EXAMPLES if page else 0, watch=page and page.watch,
                force=force, progress=show_progress(as_json),
            )  # fmt: skip
            evaluations.append(evaluation)
            if page is not None:
                with doing("drawing the report"):
                    page.add(evaluation, method, _training_split(dataset, name, layout))
            evaluation.examples.clear()
    summary = Summary(evaluations)
    left_out = {name: why for one in evaluations for name, why in one.failed.items()}
    result = {"model": str(model), "dataset": str(dataset), **summary.as_json(), "left_out": left_out}
    with unfinished_outputs(outputs, job):
        if page is not None and report is not None:
            result["report"] = str(page.write(report))
        if out is not None:
            _write_text(out, json.dumps(result, indent=2, allow_nan=False) + "\n")
        if markdown is not None:
            _write_text(markdown, summary.to_markdown())
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        summary.print()
        for path in (result.get("report"), out, markdown):
            if path is not None:
                print(path)
    end(left_out, said=not as_json)


def _open_report(folder: Path | None, overwrite: bool, model: Path, dataset: Path) -> Any:
    """Return an empty report, if one is wanted and can be written."""
    if folder is None:
        return None
    from mmad_bank.report import PAGE, Origin, Report, check_report_folder

    check_output_folder(folder, "--report", outputs=(PAGE,), overwrite=overwrite)
    check_report_folder(folder)
    check_not_current(folder)
    return Report(Origin(command_line(), str(dataset), "test", str(model)))


def _choose_models(model: Path, dataset: Path, categories: list[str] | None, layout: str) -> dict[str, Path]:
    """Return the model's folder for every category to evaluate."""
    from mmad_bank.data import categories_of
    from mmad_bank.methods.base import MANIFEST, read_manifest

    if (model / MANIFEST).is_file():
        fitted = {sample.split("/")[0] for sample in read_manifest(model).get("train_ids", [])}
        there = categories_of(dataset, layout)
        names = categories or [name for name in there if name in fitted] or there
        return dict.fromkeys(names, model)
    found = {path.parent.name: path.parent for path in sorted(model.glob(f"*/{MANIFEST}"))}
    if not found:
        raise InputError(f"{model}: expected a saved model ({MANIFEST}) or a folder of one a category, found none")
    for name in categories or ():
        if name not in found:
            near = did_you_mean(name, found)
            raise InputError(f"--categories: {model} has models of {', '.join(found)}, found {name!r}{near}")
    return {name: found[name] for name in categories or found}


def _training_split(dataset: Path, category: str, layout: str) -> Any:
    """Return the training split, for its images in the report, if it is there."""
    from mmad_bank.data import open_dataset

    try:
        return open_dataset(dataset, category, "train", layout)
    except InputError:
        return None


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as beside:
        # Names whose bytes are no UTF-8 are escaped, as they are on a terminal.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def predict(
    model: ModelFolder,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RGB XYZ...",
            help="Files of one sample or several, a picture whose point cloud lies beside it, or a data set's folder.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write score.json, map.npy, image.png and overlay.png to, OUT/ID for several samples.",
            show_default=False,
        ),
    ],
    maps: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write each map to as well, MAPS/ID.tiff, as MVTec's evaluation reads them.",
            show_default=False,
        ),
    ] = None,
    category: Category = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Split to score, of a data set.")
    ] = "test",
    scale: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Scores that the first and the last colour stand for (default: the model's).", show_default=False
        ),
    ] = None,
    explain: Annotated[
        int, typer.Option(help="Number of normal patches to name for the worst patch of each bank.")
    ] = 4,
    layout: Layout = "auto",
    units: Units = None,
    trust_index: TrustIndex = False,
    device: Device = "cpu",
    force: Force = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score samples that no truth is known of: image score, anomaly map, and the normal patches that explain them.

    Maps, overlays and the places of patches are in the pixels of the picture, image.png: padding and resizing are
    undone. Samples that cannot be used are named and left out. After a crash the same command may be given again;
    whatever else would be replaced needs --overwrite.
    """
    check_model_first("predict", model, inputs, "MODEL RGB XYZ" if len(inputs) > 1 else "MODEL DATASET")
    from mmad_bank import methods
    from mmad_bank.data import open_dataset

    target = str(check_device(device))
    if scale is not None and not (math.isfinite(scale[0]) and math.isfinite(scale[1]) and scale[0] < scale[1]):
        raise InputError(f"--scale: expected two numbers, the lower first, found {scale[0]:g} {scale[1]:g}")
    if explain < 0:
        raise InputError(f"--explain: expected at least 0, found {explain}")
    samples = list(_inputs(inputs, category, split, layout, units))
    job = {"predict": [str(path.resolve()) for path in (model, *inputs)], "category": category, "split": split}
    job |= {"units": units} if units else {}
    written = [str(Path(name if len(samples) > 1 else ".", file)) for name, _ in samples for file in _WRITTEN]
    mine, read = overwrite or is_unfinished(out, job), (model, *inputs)
    check_output_folder(out, "--out", outputs=written, inputs=read, overwrite=mine)
    if maps is not None:
        check_output_folder(
            maps, "--maps", outputs=[f"{name}.tiff" for name, _ in samples], inputs=read, overwrite=mine
        )
    with doing(f"loading {model}"):
        method = methods.load(model, target, trust_index=trust_index)
    if not force and inputs[0].is_dir():
        method.check(open_dataset(inputs[0], category, split, layout), str(inputs[0]))
    begin = time.perf_counter()
    with unfinished(out, job):
        results, failed = _predict_all(method, samples, out, maps, explain, force, show_progress(as_json))
        if not results:
            raise NoneUsableError("", failed)
        limits = scale or _colour_scale(model, method, results)
        with doing("drawing overlays"):
            for one in results:
                _draw_overlay(Path(one["folder"]), limits)
    taken = time.perf_counter() - begin
    for line in dict.fromkeys(note for one in results for note in one["notes"]):
        print(f"note: {line}", file=sys.stderr)
    result = {
        "model": str(model), "samples": results, "left_out": failed, "colour_scale": list(limits), "seconds": taken
    }  # fmt: skip
    rows = {one["id"]: f"{one['score']:.4f}  {one['folder']}" for one in results}
    emit(result, {**rows, "time": seconds(taken)}, title=f"scored into {out}", as_json=as_json)
    end(failed)


def _colour_scale(model: Path, method: Method, results: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the scores of the first and last colour: the model's, or else the samples' own, which is said."""
    if method.map_scale_ is not None:
        return method.map_scale_.limits()
    print(f"{model}: has no colour scale of normal images; colours go from these samples' lowest to highest score",
          file=sys.stderr)  # fmt: skip
    return min(one["map_range"][0] for one in results), max(one["map_range"][1] for one in results)


def _inputs(
    paths: Sequence[Path], category: str | None, split: str, layout: str, units: str | None
) -> Iterator[tuple[str, Callable[[], Sample | Path]]]:
    """Yield ids of samples and functions that read them."""
    from mmad_bank.data import open_dataset, open_sample
    from mmad_bank.methods.inputs import cloud_beside

    if len(paths) == 1 and paths[0].is_dir():
        dataset = open_dataset(paths[0], category, split, layout, units=units)
        for number, record in enumerate(dataset.records):
            yield record.id, partial(dataset.__getitem__, number)
        return
    if len(paths) == 1:
        picture, cloud = paths[0], cloud_beside(paths[0])
        # Whether a picture alone does, the method knows.
        yield picture.stem, partial(open_sample, picture, cloud, units=units) if cloud else lambda: picture
        return
    if len(paths) % 2:
        raise InputError(
            f"RGB XYZ: expected pairs of files, a picture or a data set's folder, found {len(paths)} files"
        )
    names: set[str] = set()
    for rgb, xyz in zip(paths[::2], paths[1::2], strict=True):
        check_picture_first(rgb, xyz)
        name, number = rgb.stem, len(names)
        while name in names:
            name, number = f"{rgb.stem}-{number}", number + 1
        names.add(name)
        yield name, partial(open_sample, rgb, xyz, units=units)


def _predict_all(
    method: Method,
    samples: list[tuple[str, Callable[[], Sample | Path]]],
    out: Path,
    maps: Path | None,
    explain: int,
    force: bool,
    progress: bool,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Score and write samples one by one; return what is said of them, and why others were left out."""
    from mmad_bank.data._images import write_map

    results: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with progress_bar("scoring samples", len(samples)) if progress else nullcontext(lambda done: None) as report:
        for number, (name, read) in enumerate(samples, 1):
            folder = out if len(samples) == 1 else out / name
            try:
                prediction = method.predict(read(), force=force)
            except InputError as error:
                failed[name] = " ".join(str(error).split())
            else:
                results.append(_write_prediction(folder, name, method, prediction, explain))
                if maps is not None:
                    write_map(maps / f"{name}.tiff", prediction.map.numpy())
            report(number)
    return results, failed


def _write_prediction(folder: Path, name: str, method: Method, prediction: Prediction, n: int) -> dict[str, Any]:
    """Write a sample's map.npy, its picture, and score.json."""
    import numpy as np

    from mmad_bank._pictures import rgb_picture
    from mmad_bank.data._images import write_png

    folder.mkdir(parents=True, exist_ok=True)
    notes = list(prediction.notes)
    if prediction.sample.frame is None:
        notes.append(_NO_FRAME)
    values = prediction.map.numpy()
    with replacing(folder / "map.npy") as beside:
        np.save(beside, values)
    write_png(folder / "image.png", rgb_picture(prediction.original))
    result = {
        "id": name,
        "folder": str(folder),
        "score": prediction.score,
        "size": list(prediction.size),
        "notes": notes,
        "parts": {part: one.score for part, one in prediction.parts.items()},
        "map_range": [float(values.min()), float(values.max())],
        "explanation": {part: _explain(method, prediction, part, n) for part in prediction.parts} if n else {},
    }
    _write_text(folder / "score.json", json_text(result))
    return result


def _explain(method: Method, prediction: Prediction, part: str, n: int) -> dict[str, Any]:
    """Name the normal patches that are nearest to a part's worst patch."""
    place, grid = prediction.parts[part].worst, prediction.parts[part].grid
    reasons = method.explain(prediction, part, place=place, n=n)
    nearest = [{"sample": one.sample, "place": one.place, "box": one.box, "distance": one.distance} for one in reasons]
    box = prediction.box(part, place)
    return {"worst_patch": place, "grid": list(grid), "box": box, "nearest_normal_patches": nearest}


def _draw_overlay(folder: Path, limits: tuple[float, float]) -> None:
    """Draw a sample's overlay from its map and image."""
    import numpy as np

    from mmad_bank._pictures import overlay
    from mmad_bank.data._images import read_rgb, write_png

    write_png(folder / "overlay.png", overlay(read_rgb(folder / "image.png"), np.load(folder / "map.npy"), limits))
