"""The command that chooses a bank's settings: tune."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.files import cache_dir, real_path, replacing, write_text
from mmad_bank._internal.terminal import say
from mmad_bank.cli._command import add
from mmad_bank.cli._dumps import AxesOfMaps, ByImage, Features, Key, Reading
from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._labels import Labels, labels_of_file, labels_of_names
from mmad_bank.cli._options import Json, Overwrite, Patches, ProjectionDim, ResultsFile, Reweight
from mmad_bank.cli._output import are_unfinished, check_outputs, show_progress, unfinished_outputs
from mmad_bank.cli._tuned import Commands, facts_of, show, word_limits, words_of
from mmad_bank.cli._values import (
    check_once,
    check_plot,
    check_positive,
    parse_duration,
    parse_list,
    parse_paths,
    parse_projection,
    parse_share,
    parse_size,
)
from mmad_bank.cli._words import Measure, option
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mmad_bank.bank import FeatureDump
    from mmad_bank.tuning import Sweep


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, tune)


def tune(
    features: Features,
    test: Annotated[list[Path], option("--test")],
    anomalous: Annotated[list[Path] | None, option("--anomalous")] = None,
    labels: Annotated[Path | None, option("--labels")] = None,
    memory: Annotated[str | None, option("--memory", "bank", "")] = None,
    fps: Annotated[float | None, option("--fps")] = None,
    by: Annotated[Measure, option("--by")] = "error",
    budget: Annotated[str, option("--budget")] = "10m",
    timing: Annotated[str, option("--timing")] = "1s",
    ratios: Annotated[str | None, option("--ratios")] = None,
    bank_precisions: Annotated[str, option("--bank-precisions")] = "auto,float32,half,int8",
    index: Annotated[
        list[str] | None,
        option("--index", "; repeat the option for several, whose names hold commas (default: some of each)"),
    ] = None,
    test_images: Annotated[int, option("--test-images", "to score, spread over all; 0 takes all")] = 32,
    patches: Patches = None,
    key: Key = None,
    axes: AxesOfMaps = "auto",
    by_image: ByImage = False,
    reweight: Reweight = "m3dm",
    projection_dim: ProjectionDim = None,
    seed: Annotated[int, option("--seed", "the random projection")] = 0,
    threads: Annotated[int | None, option("--threads", "the search (default: one per core)")] = None,
    out: ResultsFile = None,
    workdir: Annotated[
        Path | None, option("--workdir", "results in as they come (default: OUT.tune, or in the cache folder)")
    ] = None,
    plot: Annotated[Path | None, option("--plot", "the settings")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure a bank's ratios, precisions and indices on test images; recommend one for a memory or a frame rate.

    Results are kept as they come: after a stop, or when the time was up, the same command goes on where it was. Results
    of other features, images or settings are dropped, and a line says so. The exit code is 1 if no setting keeps to the
    budget of memory and frame rate.
    """
    limits = _check_limits(None if memory is None else parse_size(memory), fps)
    tests, defective = parse_paths(test, "--test"), parse_paths(anomalous or (), "--anomalous")
    for name, paths in {"FEATURES": features, "--test": tests, "--anomalous": defective}.items():
        check_once(paths, name)
    read = (*features, *tests, *defective, *(() if labels is None else (labels,)))
    outputs = (out, plot)
    job = {"tune": [str(real_path(path)) for path in (*read, *outputs) if path is not None], "plots": plot is not None}
    check_outputs({"--out": out, "--plot": plot}, inputs=read, overwrite=overwrite or are_unfinished(outputs, job))
    if defective and labels is not None:
        raise InputError("--anomalous and --labels: expected one of them, found both")
    chosen = _parse_ratios(ratios), parse_list(bank_precisions, "--bank-precisions")
    time_limit, timed = parse_duration(budget, "--budget"), parse_duration(timing, "--timing")
    dimensions = parse_projection(projection_dim)
    from mmad_bank import tuning
    from mmad_bank._internal.resume import remove_stages

    if plot is not None:
        from mmad_bank.tuning import check_drawing

        check_plot(plot)
        check_drawing()
    _set_threads(threads)
    reading = Reading(key, axes, by_image)
    dump = reading.open(features)
    queries, truth = _read_tests(reading, dump, tests, defective, labels, patches, test_images)
    if by == "auroc" and not truth.of_both_kinds:
        raise InputError("--by auroc: expected normal and anomalous images (--labels or --anomalous), found one kind")
    folder = workdir or _default_workdir(out, [*features, *tests, *defective])
    progress = show_progress(as_json)
    with going_on():
        swept = tuning.sweep(
            dump, queries, labels=truth.values, ratios=chosen[0] or tuning.RATIOS,
            precisions=chosen[1],  # type: ignore[arg-type]
            indices=index or None, reweight=reweight, projection_dim=dimensions, seed=seed, timed=timed or 0.0,
            time_limit=time_limit, workdir=folder, found=_Telling(truth, progress=progress, quiet=as_json),
            progress=progress,
        )  # fmt: skip
    choice = tuning.choose(swept.settings, by=by, aurocs=swept.aurocs, **limits) if limits else None
    options = Commands(features, tests, reading, projection_dim, seed, patches, reweight)
    result = facts_of(swept, choice, limits, by, options, time_limit) | {"labels": truth.as_json()}
    text = json.dumps(result, indent=2, allow_nan=False)
    with unfinished_outputs(outputs, job):
        if out is not None:
            write_text(out, text + "\n")
        if plot is not None:
            _save_plot(plot, swept, None if choice is None else choice.best, by, limits)
        if workdir is None and not swept.waiting:
            remove_stages(folder)
    if as_json:
        print(text)
    else:
        show(swept, result)
    if limits and choice is None:
        sys.stdout.flush()
        nearest = result["nearest"]
        say(f"no setting keeps to {word_limits(limits)}; nearest: {nearest['words']}: {nearest['command']}")
        raise typer.Exit(1)


def _default_workdir(out: Path | None, inputs: Sequence[Path]) -> Path:
    """Return the folder for what is measured: beside ``--out``, or in the cache by the names of the inputs."""
    if out is not None:
        return out.with_name(f"{out.name}.tune")
    names = json.dumps([str(real_path(path)) for path in inputs])
    return cache_dir() / "tune" / hashlib.blake2b(names.encode(errors="replace"), digest_size=8).hexdigest()


class _Telling:
    """Says on standard error where the labels came from, what of an earlier run is not taken, and what was measured.

    It begins with the first result, when all arguments have been found right. What was measured is told, a line for
    each setting, with ``progress`` alone; ``quiet`` leaves all else out.
    """

    def __init__(self, labels: Labels, *, progress: bool, quiet: bool) -> None:
        self._labels, self._quiet, self._progress = labels, quiet, progress
        self._told: set[Any] = set()

    def __call__(self, sofar: Sweep) -> None:
        """Say what is new."""
        for note in () if self._quiet else (self._labels.describe(), *sofar.notes):
            if note not in self._told:
                self._told.add(note)
                say(note)
        for one in sofar.settings if self._progress else ():
            if one.setting not in self._told:
                self._told.add(one.setting)
                say(f"measured: {words_of(one)}")


def _check_limits(memory: int | None, fps: float | None) -> dict[str, Any]:
    if fps is not None and not 0 < fps < float("inf"):
        raise InputError(f"--fps: expected a number above 0, found {fps:g}")
    return {name: value for name, value in (("memory", memory), ("fps", fps)) if value is not None}


def _save_plot(path: Path, swept: Any, best: Any, by: Any, limits: dict[str, Any]) -> None:
    from mmad_bank import tuning

    title = f"{swept.rows:,} × {swept.dim}, {swept.images} images of {swept.patches} patches"
    drawn = tuning.figure(swept.settings, by=by, recommended=best, title=title, **limits)
    with replacing(path) as partial:
        drawn.savefig(partial, metadata={"Software": None} if path.suffix == ".png" else None)


def _parse_ratios(text: str | None) -> list[float] | None:
    return None if text is None else [parse_share(word, "--ratios") for word in parse_list(text, "--ratios", "shares")]


def _set_threads(threads: int | None) -> None:
    import torch

    check_positive("--threads", threads)
    if threads is not None:
        torch.set_num_threads(threads)


def _read_tests(
    reading: Reading, normal: FeatureDump, test: Sequence[Path], anomalous: Sequence[Path], labels: Path | None,
    patches: int | None, most: int,
) -> tuple[Tensor, Labels]:  # fmt: skip
    """Return the test images' features (B, P, D) and labels, at most ``most`` images, spread over all."""
    import torch

    from mmad_bank.bank.dump_scores import in_images, patches_of_an_image
    from mmad_bank.cli._scoring import images_of

    if most < 0:
        raise InputError(f"--test-images: expected a number, or 0 for all, found {most}")
    dump = reading.open([*test, *anomalous], normal.dim)
    dump.check_dim(normal.dim, normal.sources[0].file)
    dump.check_extractor(normal.extractor, normal.sources[0].file)
    per_image = patches_of_an_image(dump, patches)
    dump = in_images(dump, per_image)
    names = [image.name for part in dump.parts for image in images_of(part, per_image)]
    if anomalous:
        n_normal = len(reading.open(test, normal.dim)) // per_image
        truth = Labels([0] * n_normal + [1] * (len(names) - n_normal), "--anomalous")
    else:
        truth = labels_of_names(names) if labels is None else labels_of_file(labels, len(names))
    kept = torch.linspace(0, len(names) - 1, min(most or len(names), len(names)), dtype=torch.float64).round().long()
    rows = (kept[:, None] * per_image + torch.arange(per_image)).view(-1)
    return dump.take(rows).cpu().view(len(kept), per_image, dump.dim), truth.of(kept.tolist())
