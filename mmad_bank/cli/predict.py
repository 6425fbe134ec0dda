"""The command that scores samples of which no truth is known: predict."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mmad_bank._internal.files import real_path
from mmad_bank._internal.progress import doing, progress_bar, within
from mmad_bank._internal.terminal import say
from mmad_bank.cli._command import add
from mmad_bank.cli._options import (
    Address,
    Device,
    FailOnBad,
    Json,
    Layout,
    ModelRate,
    ModelRuntime,
    ModelUnits,
    Overwrite,
    RayWorkers,
    TrustIndex,
)
from mmad_bank.cli._output import (
    check_output_folder,
    check_outputs,
    check_own_folder,
    emit,
    end,
    is_unfinished,
    say_left_out,
    seconds,
    show_progress,
    unfinished,
)
from mmad_bank.cli._parts import judge, name_of, say_notes, summary, word_row
from mmad_bank.cli._pictures import PICTURES
from mmad_bank.cli._predict_groups import Group, alone, files_found, groups_of, samples_of
from mmad_bank.cli._predicted import (
    POINTS,
    WRITTEN,
    ToPredict,
    Writing,
    draw_overlay,
    none_usable,
    write_csv,
    write_jsonl,
)
from mmad_bank.cli._swapped import check_model_first
from mmad_bank.cli._values import check_device, parse_categories, parse_scale
from mmad_bank.cli._verdicts import (
    FIT_ANEW,
    NOT_CALIBRATED,
    as_asked,
    changes_asked,
    end_on_bad,
    parse_rate,
    warn_if_outdated,
)
from mmad_bank.cli._words import SplitName, option
from mmad_bank.cli._workers import check_workers, cluster_of
from mmad_bank.cli.evaluation import Force, ModelFolder
from mmad_bank.errors import InputError, MmadBankError

if TYPE_CHECKING:
    from mmad_bank.data import PartView, SampleDataset
    from mmad_bank.methods import Method


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, predict)


def predict(
    model: ModelFolder,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="SAMPLES...",
            help="Pictures, each with its point cloud behind it (RGB XYZ RGB XYZ ...), pictures alone whose point"
            " clouds lie beside them or are not needed (RGB RGB ...), or one folder of a data set; or plain pictures,"
            " as folders, lists of paths (.txt) or patterns in quotes.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        option(
            "--out",
            "Folder",
            ", with score.json, map.npy, image.png and overlay.png; OUT/ID for several samples, and for those of a"
            " folder, list or pattern, where an ID of a data set begins with the category",
        ),
    ],
    maps: Annotated[Path | None, option("--maps", "MAPS/ID.tiff, as MVTec's evaluation reads it")] = None,
    csv: Annotated[Path | None, option("--csv")] = None,
    jsonl: Annotated[Path | None, option("--jsonl")] = None,
    false_alarm_rate: ModelRate = None,
    fail_on_bad: FailOnBad = False,
    views: Annotated[str | None, option("--views", " (default: the model's)")] = None,
    categories: Annotated[str | None, option("--categories", "those of MODEL")] = None,
    split: Annotated[SplitName, option("--split")] = "test",
    scale: Annotated[str | None, option("--scale")] = None,
    explain: Annotated[int, option("--explain")] = 4,
    layout: Layout = "auto",
    units: ModelUnits = None,
    trust_index: TrustIndex = False,
    device: Device = "cpu",
    runtime: ModelRuntime = None,
    workers: RayWorkers = None,
    address: Address = None,
    force: Force = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score samples that no truth is known of: verdict, score, anomaly map, and the normal patches that explain them.

    A model that is calibrated judges every sample good or bad, at a promised false-alarm rate; its regions are the
    places of the map that no normal image has. One that was fitted with --views judges parts, each by all its pictures.
    Maps, regions and the places of patches are in the pixels of the picture, image.png: padding and resizing are
    undone. overlay.png shows the map on it, and the regions as outlines with their numbers and peaks; a small picture
    is enlarged by a whole number there.

    Samples that cannot be used are named and left out, as are categories whose model cannot score them, where there
    are several. The same command may be given again after a crash; whatever else would be replaced needs --overwrite.
    """
    from mmad_bank.data.picture_files import is_list, is_pattern

    check_model_first("predict", model, inputs, "MODEL RGB XYZ" if len(inputs) > 1 else "MODEL DATASET")
    target = str(check_device(device))
    check_workers(workers, address, target)
    limits = None if scale is None else parse_scale(scale)
    rate = parse_rate(false_alarm_rate)
    if explain < 0:
        raise InputError(f"--explain: expected at least 0, found {explain}")
    groups = groups_of(model, inputs, parse_categories(categories), split, layout, units)
    samples = [name for group in groups for name, _ in group.samples]
    job = {"predict": [str(real_path(path)) for path in (model, *inputs)], "category": categories, "split": split}
    job |= {name: value for name, value in (("units", units), ("views", views)) if value}
    job |= {"maps": str(real_path(maps))} if maps else {}  # the note lets nothing be replaced in another folder
    tables = [str(real_path(path)) for path in (csv, jsonl) if path]
    job |= {"tables": tables} if tables else {}
    several = len(samples) > 1 or any(path.is_dir() or is_list(path) or is_pattern(path) for path in inputs)
    written = [str(Path(name if several else ".", file)) for name in samples for file in (*WRITTEN, POINTS)]
    mine, read = overwrite or is_unfinished(out, job), (model, *inputs, *files_found(inputs, groups))
    _check_own_folders(out, maps, (model, *inputs), groups, samples if several else [])
    check_output_folder(out, "--out", outputs=written, inputs=read, overwrite=mine)
    check_outputs({"--csv": csv, "--jsonl": jsonl}, inputs=read, overwrite=mine)
    if maps is not None:
        check_output_folder(maps, "--maps", outputs=[f"{name}.tiff" for name in samples], inputs=read, overwrite=mine)
    run = _Predicting(
        out, maps, several, limits, explain, rate, views, fail_on_bad, target, runtime, trust_index, force,
        show_progress(as_json), workers,
    )  # fmt: skip
    only = run.load(groups[0]) if len(groups) == 1 else None  # refused before anything is written
    begin = time.perf_counter()
    with unfinished(out, job), cluster_of(workers, address):
        if only is None:
            run.predict_categories(groups)
        else:
            run.predict(groups[0], only)
        if not run.results:
            raise none_usable(len(samples), run.failed)
        if csv is not None:
            write_csv(csv, run.judged, run.failed)
        if jsonl is not None:
            write_jsonl(jsonl, run.judged, run.failed)
    taken = time.perf_counter() - begin
    for line in dict.fromkeys(note for one in run.results for note in one["notes"]):
        say(f"note: {line}")
    say_notes(run.judged)
    parts = [one for one in run.judged if "part" in one]
    result = {
        "model": str(model), "samples": run.results, **({"parts": parts} if parts else {}), "left_out": run.failed,
        "colour_scale": None if only is None else run.scales[groups[0].name],
        "colour_scales": run.scales if only is None else {}, "seconds": taken,
    }  # fmt: skip
    width = max(len(one["verdict"] or "") for one in run.judged)
    rows = [(name_of(one), word_row(one, width)) for one in run.judged]
    rows += [*summary(run.judged, len(samples) - len(run.results), len(samples)).items(), ("time", seconds(taken))]
    emit(result, rows, title=f"scored into {out}", as_json=as_json)
    say_left_out(run.failed)
    end_on_bad(fail_on_bad and any(one["verdict"] == "bad" for one in run.judged))
    end(run.failed, said=True)


def _check_own_folders(
    out: Path, maps: Path | None, inputs: Sequence[Path], groups: Sequence[Group], names: Sequence[str]
) -> None:
    """Refuse folders for results that are inputs, or in which results would be taken for inputs the next time.

    ``names`` are those of the folders in OUT; none where the results of one sample lie in OUT itself.

    Raises:
        InputError: One is.
    """
    folders = [path for path in inputs if path.is_dir()]
    files = [*(path for path in inputs if not path.is_dir()), *files_found(inputs, groups)]
    beside = not names or any((out / name).is_file() for name in names)
    check_own_folder(out, "--out", [*folders, *(file.parent for file in files if beside)])
    if maps is not None:
        check_own_folder(maps, "--maps", folders)
        if any(dataset.layout == PICTURES for group in groups for _, dataset in group.datasets):
            check_own_folder(maps, "--maps", [path for path in inputs[1:] if path.is_dir()], below=True)


def _colour_scale(model: Path, method: Method, results: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the scores of the first and last color: the model's, or else the samples' own, which is said."""
    if method.map_scale_ is not None:
        return method.map_scale_.limits()
    say(f"{model}: has no color scale of normal images; colors go from these samples' lowest to highest score")
    return min(one["map_range"][0] for one in results), max(one["map_range"][1] for one in results)


@dataclass
class _Predicting:
    """Work of ``predict`` on every sample, and what it has done.

    ``judged`` are its results, but of each part that several samples show one.
    """

    out: Path
    maps: Path | None
    several: bool
    scale: tuple[float, float] | None
    explain: int
    rate: float | None
    views: str | None
    fail_on_bad: bool
    device: str
    runtime: str | None
    trust_index: bool
    force: bool
    progress: bool
    workers: int | None
    results: list[dict[str, Any]] = field(default_factory=list)
    judged: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    scales: dict[str, list[float]] = field(default_factory=dict)

    def load(self, group: Group) -> Method:
        """Load a group's model, and refuse samples that it was not made for."""
        from mmad_bank import methods
        from mmad_bank.methods.part_verdicts import pattern_of

        with doing(f"loading {group.model}"):
            method = methods.load(group.model, self.device, trust_index=self.trust_index)
        if self.fail_on_bad and method.calibration_ is None:
            raise InputError(f"--fail-on-bad: {NOT_CALIBRATED}: {group.model}")
        pattern_of(method, self.views)
        method = as_asked(method, self.rate, self.runtime)
        warn_if_outdated(group.model, method.calibration_outdated, FIT_ANEW)
        if self.force or not group.datasets:
            return method
        group.datasets = [(name, cast("SampleDataset", method.suited(one, name))) for name, one in group.datasets]
        group.samples = samples_of(group.datasets)
        for name, dataset in group.datasets:
            method.check(dataset, name)
        return method

    def predict_categories(self, groups: list[Group]) -> None:
        """Score category after category; one whose model cannot be used is left out."""
        for number, group in enumerate(groups, 1):
            with within(group.name, number, len(groups)):
                try:
                    method = self.load(group)
                except MmadBankError as error:
                    self.failed[group.name] = f"{group.name}: {error}"
                else:
                    self.predict(group, method)

    def predict(self, group: Group, method: Method) -> None:
        """Score a group's samples, and draw their overlays in the model's colors."""
        from mmad_bank.methods.part_verdicts import pattern_of

        shown: dict[str, PartView] = {}
        pattern = pattern_of(method, self.views)
        if pattern is not None:
            shown, left_out = group.show(pattern)
            self.failed |= left_out
        results = self._score(group, method, shown)
        if not results:
            return
        limits = self.scale or _colour_scale(group.model, method, results)
        with doing("drawing overlays"):
            for one in results:
                draw_overlay(one, method, limits)
        self.results += results
        known = None if method.calibration_ is None else method.calibration_.views
        self.judged += results if pattern is None else judge(results, known)
        self.scales[group.name] = list(limits)

    def _score(self, group: Group, method: Method, shown: Mapping[str, PartView]) -> list[dict[str, Any]]:
        """Score and write samples one by one; return what is said of them, and note why others are left out."""
        results: list[dict[str, Any]] = []
        bar = progress_bar("scoring samples", len(group.samples)) if self.progress else nullcontext(lambda done: None)
        with bar as report:
            found = self._worked(
                group, method, [ToPredict(name, read, shown.get(name)) for name, read in group.samples]
            )
            for number, ((name, _), one) in enumerate(zip(group.samples, found, strict=True), 1):
                if isinstance(one, str):
                    self.failed[name] = one
                else:
                    results.append(one)
                report(number)
        return results

    def _worked(self, group: Group, method: Method, samples: list[ToPredict]) -> Iterator[dict[str, Any] | str]:
        """Score samples here, or in other processes, which load the model themselves."""
        writing = Writing(self.out, self.maps, self.several, self.explain, self.force)
        if self.workers is None:
            return (writing(method, sample) for sample in samples)
        from mmad_bank.distributed.pictures import ModelWork, worked_by_model

        loading = {"device": self.device, "trust_index": self.trust_index}
        work = ModelWork(group.model, loading, changes_asked(self.rate, self.runtime), writing)
        sent = [sample._replace(read=alone(sample.read)) for sample in samples]
        return worked_by_model(work, sent, workers=self.workers)
