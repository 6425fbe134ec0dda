"""The command that fits methods: fit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.file_names import MODEL
from mmad_bank._internal.files import check_not_current, named_after
from mmad_bank._internal.folders import working_alone
from mmad_bank._internal.progress import doing, within
from mmad_bank._internal.resume import wording
from mmad_bank._internal.terminal import printable, say
from mmad_bank.cli._command import add
from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._job import Job
from mmad_bank.cli._options import Categories, Device, Json, Layout, Learned, Overwrite, Units
from mmad_bank.cli._output import check_output_folder, emit, end, seconds, show_progress, size
from mmad_bank.cli._pictures import one_or_several
from mmad_bank.cli._swapped import check_method_first
from mmad_bank.cli._values import check_device, parse_categories
from mmad_bank.cli._verdicts import model_calibration_facts, word_model_calibration
from mmad_bank.cli._words import option
from mmad_bank.errors import InputError, NoneUsableError
from mmad_bank.methods import names

if TYPE_CHECKING:
    from mmad_bank._internal.resume import Stages
    from mmad_bank.methods.shareable import Shared, SharedPart


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, fit)


def _methods_from(incomplete: str) -> list[str]:
    """Complete a method's name in the shell."""
    return [name for name in names() if name.startswith(incomplete.lower())]


def fit(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help=f"Method: {', '.join(names())}.",
            autocompletion=_methods_from,
            show_default=False,
        ),
    ],
    dataset: Learned,
    out: Annotated[Path, option("--out", "Folder", ", with the model, or with one model per category: OUT/CATEGORY")],
    categories: Categories = None,
    per_category: Annotated[bool, option("--per-category")] = False,
    bundled: Annotated[bool, option("--bundled")] = False,
    settings: Annotated[list[str] | None, option("--set")] = None,
    few_shot: Annotated[int | None, option("--few-shot")] = None,
    seed: Annotated[int, option("--seed", "the method and of the few-shot draw")] = 0,
    workdir: Annotated[
        Path | None, option("--workdir", "the results of the stages in (default: OUT.fit, removed at the end)")
    ] = None,
    layout: Layout = "auto",
    units: Units = None,
    roi: Annotated[Path | None, option("--roi")] = None,
    views: Annotated[str | None, option("--views", ", and its pictures are in one fold")] = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fit a method on a category's normal samples, or one model for each category, and save it.

    A folder in no data set's layout is taken for good pictures, all of them normal; so are files, lists and patterns.

    Over several categories, M3DM's fusion, LSFA's adaptors and signed distances are trained once, on all of
    them; train-uff, train-adaptors and train-sdf do that alone.

    The same command, given again after a crash or Ctrl-C, says what is there and goes on with it: features so far, and
    finished stages.
    """
    check_method_first(method, dataset[0], names())
    from mmad_bank.data import read_region
    from mmad_bank.methods import method_class
    from mmad_bank.methods.shareable import TrainedOn

    job = _Fit(
        method_class(method.lower()), one_or_several(dataset), parse_categories(categories), layout, units, few_shot,
        seed, out=out, workdir=workdir or named_after(out, ".fit"), keep=workdir is not None, per_category=per_category,
        progress=show_progress(as_json), roi=None if roi is None else read_region(roi),
        views=views,
    )  # fmt: skip
    job.choose_arguments(settings or [], bundled, str(check_device(device)))
    if few_shot is not None and job.arguments.get("views") is not None:
        raise InputError("--few-shot: expected none with --views, as it draws pictures one by one and not parts")
    job.open()
    job.check_outputs(overwrite)
    job.say_idle()
    with working_alone(job.workdir), going_on():
        job.check_outputs(overwrite)  # once more: another run may have ended meanwhile
        with job.leaving_nothing_unused():
            models = job.run()
        if not job.keep:
            job.remove_stages(job.workdir)
    rows = {}
    for model in models:
        rows[model["category"]] = (
            f"{printable(model['path'])}, {size(model['bytes'])}, fitted on {model['images']} images in "
            + (seconds(model["seconds"]) if model["seconds"] else "an earlier run")
            + (f", {len(model['left_out']):,} left out" if model["left_out"] else "")
        )
        rows[model["category"]] += f"\ncalibrated on {word_model_calibration(model['calibration'])}"
    trained = {name: one for model in models for name, one in model["trained_on"].items()} if job.shared_parts else {}
    for part in job.shared_parts:
        if part.name in trained:
            rows[part.words] = f"shared, trained on {TrainedOn.from_json(trained[part.name], MODEL).in_words()}"
    result = {"method": job.method.name, "arguments": job.arguments, "models": models}
    emit(result, rows, title=f"fitted {job.method.name}", as_json=as_json)
    end({name: why for model in models for name, why in model["left_out"].items()} | job.left_out)


@dataclass
class _Fit(Job):
    """Work of ``fit``: one model per category."""

    out: Path = Path()
    workdir: Path = Path()
    keep: bool = False
    per_category: bool = False
    progress: bool = False
    left_out: dict[str, str] = field(default_factory=dict)

    def say_idle(self) -> None:
        """Name options and settings that have no effect."""
        super().say_idle()
        if self.per_category and not (len(self.splits) > 1 and self.make().parts_to_train()):
            why = "this method, which shares nothing between categories" if len(self.splits) > 1 else "one category"
            say(f"warning: --per-category has no effect with {why}")

    @property
    def shared_parts(self) -> tuple[SharedPart, ...]:
        """What one training makes for all categories."""
        return self.make().parts_to_train() if len(self.splits) > 1 and not self.per_category else ()

    def check_outputs(self, overwrite: bool) -> None:
        """Refuse models that are there, unless an earlier run of this job, which did not end, has saved them."""
        from mmad_bank._internal.resume import fingerprint_of

        if len(self.splits) > 1 and (self.out / MODEL).exists():
            raise InputError(
                f"--out: expected a folder for models of {', '.join(self.splits)}, found a model in {self.out},"
                " which would be taken for all of them"
            )
        for name in self.splits:
            path = self.target(name)
            check_output_folder(path, "--out")
            check_not_current(path)
            if not overwrite and fingerprint_of(self.workdir) != self.fingerprint():
                check_output_folder(path, "--out", outputs=(MODEL,))
            if path.exists() and any(path.iterdir()) and not (path / MODEL).is_file():
                raise InputError(f"--out: expected a new folder or a saved model, found something else in {path}")

    def target(self, category: str) -> Path:
        """Return a category's model folder."""
        return self.out if len(self.splits) == 1 else self.out / category

    def run(self) -> list[dict[str, Any]]:
        """Fit and save what has not been saved by an earlier run of the same job."""
        from mmad_bank._internal.resume import Stages
        from mmad_bank.cli._group import spelling

        stages = Stages(self.workdir, self.fingerprint())
        shared = self.train_shared(self.workdir, self.progress) if self.shared_parts else None
        models = []
        for number, category in enumerate(self.splits, 1):
            with within(category, number, len(self.splits)), spelling(self.spelled):
                try:
                    models.append(self._fit_once(category, stages, shared))
                except NoneUsableError as error:
                    if len(self.splits) == 1:
                        raise
                    self.left_out[category] = f"{category}: {error}"
        if not models:
            raise NoneUsableError("", self.left_out)
        return models

    @contextmanager
    def leaving_nothing_unused(self) -> Iterator[None]:
        """Where the block fails before a stage has left anything, remove the folders that were made for results."""
        try:
            yield
        finally:
            if not self.keep:
                self.remove_unused(self.workdir)

    def _fit_once(self, category: str, stages: Stages, shared: Shared | None) -> dict[str, Any]:
        """Fit a category's model unless it is there; a note says so, the stages' results have gone by then."""
        from mmad_bank._internal.resume import remove_stages

        note, model = stages.folder / f"{category}.done", self.target(category) / MODEL
        if not (note.is_file() and model.is_file() and note.read_text() == _checksum(model)):
            note.unlink(missing_ok=True)
        facts: list[dict[str, Any]] = []

        def make(path: Path) -> None:
            facts.append(self._fit(category, stages.folder / category, shared))
            path.write_text(_checksum(model))

        stages.run(note.name, make)
        if not self.keep:
            remove_stages(stages.folder / category)
        return facts[0] if facts else _describe_model(category, self.target(category), 0.0)

    def _fit(self, category: str, workdir: Path, shared: Shared | None) -> dict[str, Any]:
        train, validation = self.splits[category]
        begin = time.perf_counter()
        model = self.make().fit(
            train, validation=validation, workdir=workdir, progress=self.progress, shared=shared
        )  # fmt: skip
        with doing("saving the model"):
            model.save(self.target(category))
        return _describe_model(category, self.target(category), time.perf_counter() - begin)

    def fingerprint(self) -> dict[str, Any]:
        """Say what the models depend on."""
        parts = [part.name for part in self.shared_parts]
        return {**super().fingerprint(), **({"shared": parts} if parts else {})}


def _checksum(path: Path) -> str:
    """Return what tells one model's list of contents from another's."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _describe_model(category: str, path: Path, taken: float) -> dict[str, Any]:
    """Return what the command says of a saved model."""
    from mmad_bank.methods.model_folder import read_manifest

    manifest = read_manifest(path)
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "category": category, "path": str(path), "images": len(manifest["train_ids"]), "left_out": manifest["skipped"],
        "bytes": n_bytes, "seconds": taken, "trained_on": manifest.get("trained_on", {}),
        "calibration": model_calibration_facts(
            manifest.get("calibration"), manifest["arguments"].get("false_alarm_rate")
        ),
    }  # fmt: skip


@wording(r"(.+)\.done")
def _word_model(_: Path, category: str) -> str:
    return f"the model of {category}"
