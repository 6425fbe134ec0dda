"""The command that scores a test split, whose truth is known: evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmad_bank._internal.file_names import MODEL
from mmad_bank._internal.files import check_not_current, real_path, write_text
from mmad_bank._internal.progress import doing, within
from mmad_bank._internal.terminal import printable, say
from mmad_bank.cli._command import add
from mmad_bank.cli._options import (
    Batch,
    Categories,
    DatasetFolder,
    Device,
    Json,
    Layout,
    ModelRate,
    ModelRuntime,
    ModelUnits,
    Overwrite,
    ResultsFile,
    TrustIndex,
)
from mmad_bank.cli._output import (
    are_unfinished,
    check_apart,
    check_output_folder,
    check_outputs,
    command_line,
    end,
    show_progress,
    unfinished_outputs,
)
from mmad_bank.cli._swapped import check_model_first
from mmad_bank.cli._values import check_device, parse_categories
from mmad_bank.cli._verdicts import FIT_ANEW, as_asked, parse_rate, warn_if_outdated
from mmad_bank.cli._words import option
from mmad_bank.errors import InputError, did_you_mean

ModelFolder = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Folder of a saved model, or of one model per category.", show_default=False),
]
Force = Annotated[bool, option("--force")]
_EXAMPLES = 2


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, evaluate)


def evaluate(
    model: ModelFolder,
    dataset: DatasetFolder,
    categories: Categories = None,
    report: Annotated[Path | None, option("--report")] = None,
    out: ResultsFile = None,
    markdown: Annotated[Path | None, option("--markdown")] = None,
    false_alarm_rate: ModelRate = None,
    views: Annotated[
        str | None, option("--views", ", which is anomalous if one of its images is (default: the model's)")
    ] = None,
    batch: Batch = 1,
    layout: Layout = "auto",
    units: ModelUnits = None,
    trust_index: TrustIndex = False,
    device: Device = "cpu",
    runtime: ModelRuntime = None,
    force: Force = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score a test split: I-AUROC, P-AUROC and AUPRO of the result, of each bank and of each kind of defect.

    A calibrated model judges the images too: the tables say how many defects are found, and whether the promised
    false-alarm rate held.
    """
    check_model_first("evaluate", model, [dataset], "MODEL DATASET")
    from mmad_bank import methods
    from mmad_bank.data import open_dataset
    from mmad_bank.evaluation import Summary
    from mmad_bank.evaluation import evaluate as run

    target, rate = str(check_device(device)), parse_rate(false_alarm_rate)
    outputs = (out, markdown, report)  # the folders of files are there: the note goes beside one of them
    job: dict[str, Any] = {"evaluate": [str(real_path(path)) for path in (model, dataset)], "categories": categories}
    job |= {"views": views} if views else {}
    job |= {"units": units, "outputs": [path and str(real_path(path)) for path in outputs]}
    mine = overwrite or are_unfinished(outputs, job)
    check_outputs({"--out": out, "--markdown": markdown}, inputs=(model, dataset), overwrite=mine)
    if report is not None:
        check_apart({"--out": out, "--markdown": markdown}, report, "--report", ())
    page = _open_report(report, mine, model, dataset)
    _refuse_pictures(dataset, layout)
    chosen = choose_models(model, dataset, parse_categories(categories), layout)
    splits = {name: open_dataset(dataset, name, "test", layout, units=units) for name in chosen}
    evaluations = []
    for number, (name, folder) in enumerate(chosen.items(), 1):
        with within(name, number, len(chosen)):
            with doing(f"loading {folder}"):
                method = as_asked(methods.load(folder, target, trust_index=trust_index), rate, runtime)
            warn_if_outdated(folder, method.calibration_outdated, FIT_ANEW)
            evaluation = run(
                method, splits[name], batch=batch, examples=_EXAMPLES if page else 0, watch=page and page.watch,
                force=force, progress=show_progress(as_json), views=views,
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
            write_text(out, json.dumps(result, indent=2, allow_nan=False) + "\n")
        if markdown is not None:
            write_text(markdown, summary.to_markdown())
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        summary.print()
        for path in (result.get("report"), out, markdown):
            if path is not None:
                print(printable(path))
    end(left_out, said=not as_json)


def _refuse_pictures(dataset: Path, layout: str) -> None:
    """Refuse plain pictures before the work."""
    from mmad_bank.data.layouts import layout_of
    from mmad_bank.evaluation.running import unlabeled

    if layout_of(dataset, layout) == "pictures":
        raise unlabeled(dataset)


def _open_report(folder: Path | None, overwrite: bool, model: Path, dataset: Path) -> Any:
    """Return an empty report, if one is wanted and can be written."""
    if folder is None:
        return None
    from mmad_bank.report import PAGE, Origin, Report, check_report_folder

    check_output_folder(folder, "--report", outputs=(PAGE,), overwrite=overwrite)
    check_report_folder(folder)
    check_not_current(folder)
    return Report(Origin(command_line(), str(dataset), "test", str(model)))


def choose_models(model: Path, dataset: Path, categories: list[str] | None, layout: str) -> dict[str, Path]:
    """Return the model's folder for every category to score.

    Without ``categories``, what has both a model and data is scored, and a note on standard error names the rest.
    """
    from mmad_bank.data import categories_of
    from mmad_bank.methods.model_folder import read_manifest

    there = categories_of(dataset, layout)
    if (model / MODEL).is_file():
        fitted = {sample.split("/")[0] for sample in read_manifest(model).get("train_ids", [])}
        known = dict.fromkeys([name for name in there if name in fitted] or there, model)
        chosen = known if categories is None else dict.fromkeys(categories, model)
    else:
        known = models_in(model)
        if not known:
            raise InputError(f"{model}: expected a saved model ({MODEL}) or a folder of one per category, found none")
        check_models(model, categories or (), known)
        chosen = {name: known[name] for name in categories or known if categories or name in there}
    if not chosen:
        raise InputError(f"{model}: has models of {', '.join(known)}, found none of them in {dataset}")
    if categories is None:
        _say_unscored(model, dataset, known, there)
    return chosen


def _say_unscored(model: Path, dataset: Path, known: Iterable[str], there: Sequence[str]) -> None:
    """Name the categories that lack a model, and those that lack data; one category's own folder lacks no other."""
    for name in there:
        if name not in known:
            say(f"note: {model} has no model of {name}, which is not scored")
    for name in known if (dataset / there[0]).is_dir() else ():
        if name not in there:
            say(f"note: {dataset} has no data of {name}, which is not scored")


def models_in(folder: Path) -> dict[str, Path]:
    """Return the models in a folder of one per category, by category."""
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{MODEL}"))}


def check_models(folder: Path, categories: Sequence[str], found: dict[str, Path]) -> None:
    """Refuse categories that a folder has no model of."""
    for name in categories:
        if name not in found:
            near = did_you_mean(name, found)
            raise InputError(f"--categories: {folder} has models of {', '.join(found)}, found {name!r}{near}")


def _training_split(dataset: Path, category: str, layout: str) -> Any:
    """Return the training split, for its images in the report, if it is there."""
    from mmad_bank.data import open_dataset

    try:
        return open_dataset(dataset, category, "train", layout)
    except InputError:
        return None
