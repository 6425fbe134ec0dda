"""Commands that learn: extract, fit."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmad_bank._internal.files import check_not_current, named_after
from mmad_bank._internal.folders import working_alone
from mmad_bank._internal.progress import doing, within
from mmad_bank.cli._going_on import going_on
from mmad_bank.cli._options import (
    Batch,
    Categories,
    Category,
    DatasetFolder,
    Device,
    Json,
    Layout,
    Overwrite,
    Units,
    check_device,
    parse_names,
)
from mmad_bank.cli._output import (
    check_output_folder,
    emit,
    end,
    is_unfinished,
    say_unread,
    seconds,
    show_progress,
    size,
    unfinished,
)
from mmad_bank.cli._swapped import check_method_first
from mmad_bank.errors import InputError, MissingSplitError

if TYPE_CHECKING:
    from mmad_bank._internal.resume import Stages
    from mmad_bank.data import Sample, SampleDataset
    from mmad_bank.methods import Method

_EXTRACTION = "extraction.json"
Split = Annotated[Literal["train", "validation", "test"], typer.Option(help="Split of the data set.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (extract, fit):
        app.command()(command)


def extract(
    dataset: DatasetFolder,
    out: Annotated[
        Path, typer.Option(help="Folder to write rgb.npy, xyz.npy and extraction.json to.", show_default=False)
    ],
    category: Category = None,
    split: Split = "train",
    rgb: Annotated[
        str, typer.Option(help="Extractor of colour images: efficientnet_lite0, any model's name in timm, or none.")
    ] = "efficientnet_lite0",
    rgb_weights: Annotated[
        str, typer.Option(help="Weights of that extractor: pretrained, random, or a checkpoint file.")
    ] = "pretrained",
    xyz: Annotated[str, typer.Option(help="Extractor of point clouds: fpfh, point_mae, or none.")] = "fpfh",
    xyz_weights: Annotated[
        str, typer.Option(help="Weights of point_mae: its checkpoint file, or random.")
    ] = "pretrained",
    image_size: Annotated[int, typer.Option(help="Side of the prepared images in pixels.")] = 224,
    grid: Annotated[int, typer.Option(help="Number of patches along each side of an image.")] = 28,
    batch: Batch = 4,
    layout: Layout = "auto",
    units: Units = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the patch features of a split to dumps (images, patches, D), which build and score take."""
    from mmad_bank.data import open_dataset

    target = check_device(device)
    wanted = {"rgb": (rgb, rgb_weights), "xyz": (xyz, xyz_weights)}
    job = {"extract": str(dataset.resolve()), "category": category, "split": split, "units": units, **wanted}
    files = (_EXTRACTION, *(f"{name}.npy" for name, (model, _) in wanted.items() if model != "none"))
    check_output_folder(out, "--out", outputs=files, overwrite=overwrite or is_unfinished(out, job))
    samples = open_dataset(dataset, category, split, layout, units=units)
    shared: dict[str, Any] = {"grid": (grid, grid), "image_size": image_size}
    begin = time.perf_counter()
    networks = _networks(wanted, shared)
    with _place_for_dumps(out, job) as folder:
        facts = _extract(samples, folder, out, networks, target, image_size, batch, show_progress(as_json))
    facts |= {"dataset": str(dataset), "split": split, "seconds": time.perf_counter() - begin}
    rows = {
        "images": f"{len(facts['ids']):,}" + (f", {len(facts['left_out'])} left out" if facts["left_out"] else ""),
        **{name: f"{one['file']}, {one['dim']} dimensions, {one['extractor']}" for name, one in facts["dumps"].items()},
        "time": seconds(facts["seconds"]),
    }
    emit({"path": str(out), **facts}, rows, title=f"extracted into {out}", as_json=as_json)
    end(facts["left_out"])


def _networks(wanted: Mapping[str, tuple[str, str]], shared: dict[str, Any]) -> dict[str, Any]:
    """Make the extractors that are asked for."""
    from mmad_bank.features.factory import make_rgb_extractor, make_xyz_extractor

    makers: dict[str, Any] = {"rgb": make_rgb_extractor, "xyz": make_xyz_extractor}
    networks = {
        name: makers[name](model, weights, **shared) for name, (model, weights) in wanted.items() if model != "none"
    }
    if not networks:
        raise InputError("--rgb and --xyz: expected an extractor, found none twice")
    return networks


def _extract(
    samples: SampleDataset, folder: Path, out: Path, networks: dict[str, Any], device: Any, image_size: int,
    batch: int, progress: bool,
) -> dict[str, Any]:  # fmt: skip
    """Write the dumps and the list of what is in them into a folder whose files will be in ``out``."""
    from mmad_bank._internal.json_text import json_text
    from mmad_bank.extraction import Extractors, extract_to

    extractors = Extractors(networks, device)
    prepare = _preparing(samples, image_size)
    ids, left_out = extract_to(folder, samples, extractors, prepare, batch=batch, progress=progress)
    dumps = {
        name: {
            "file": str(out / f"{name}.npy"), "dim": dim, "extractor": extractors.names[name],
            "grid": list(extractors.networks[name].grid),  # type: ignore[arg-type]
        }
        for name, dim in extractors.dims.items()
    }  # fmt: skip
    facts: dict[str, Any] = {
        "dataset": str(samples.path), "split": samples.records[0].split, "image_size": image_size, "ids": ids,
        "left_out": left_out, "dumps": dumps,
    }  # fmt: skip
    (folder / _EXTRACTION).write_text(json_text(facts), encoding="utf-8")
    return facts


@contextmanager
def _place_for_dumps(out: Path, job: Mapping[str, Any]) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well, its files are in ``out``, where they replace older ones.

    A folder that is new or holds an extraction only is replaced as one. In a folder with other files, which stay, the
    list of the old extraction goes first and that of the new one comes last; should the process be killed between the
    two, a note of the job is there, and the same command may be given again.
    """
    from mmad_bank._internal.folders import replacing_folder

    if _holds_an_extraction_only(out):
        with replacing_folder(out) as folder:
            yield folder
        return
    beside = out / ".extraction"
    with working_alone(out):  # two at once would mix their dumps and lists
        with replacing_folder(beside) as folder:
            yield folder
        with unfinished(out, job):
            _remove_extraction(out)
            for file in sorted(beside.iterdir(), key=lambda file: file.name == _EXTRACTION):
                file.replace(out / file.name)
            beside.rmdir()


def _holds_an_extraction_only(out: Path) -> bool:
    if not out.exists():
        return True
    names = {path.name for path in out.iterdir()}
    if out.is_mount() or out.samefile(Path.cwd()):
        return False
    return _EXTRACTION in names and names <= {_EXTRACTION, "rgb.npy", "xyz.npy"}


def _remove_extraction(out: Path) -> None:
    """Remove an extraction whose successor is whole: its list, and the dumps that the list names."""
    listing = out / _EXTRACTION
    try:
        dumps = dict(json.loads(listing.read_text(encoding="utf-8"))["dumps"])
    except (OSError, ValueError, KeyError, TypeError):
        dumps = {}
    listing.unlink(missing_ok=True)
    for name in ("rgb", "xyz"):
        if name in dumps:
            (out / f"{name}.npy").unlink(missing_ok=True)


def _preparing(samples: SampleDataset, image_size: int) -> Any:
    """Return what brings a sample of a data set to the extractors' size."""
    from dataclasses import replace

    from mmad_bank.data import preprocess
    from mmad_bank.data.preparation import default_settings

    if samples.preparation is not None:
        if samples.preparation.size != image_size:
            found = samples.preparation.size
            raise InputError(f"--image-size: {samples.path} was prepared in {found} pixels, found {image_size}")
        return lambda sample: sample
    settings = replace(default_settings(samples.path, samples.layout), size=image_size)

    def prepare(sample: Sample) -> Sample:
        return preprocess(sample, settings)

    return prepare


def _methods_from(incomplete: str) -> list[str]:
    """Complete a method's name in the shell."""
    from mmad_bank.methods import names

    return [name for name in names() if name.startswith(incomplete.lower())]


def fit(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="Method: patchcore, btf, m3dm, lsfa, cfm, mdss.",
            autocompletion=_methods_from,
            show_default=False,
        ),
    ],
    dataset: DatasetFolder,
    out: Annotated[
        Path,
        typer.Option(help="Folder for the model, or for one model per category: OUT/CATEGORY.", show_default=False),
    ],
    categories: Categories = None,
    embedded: Annotated[
        bool,
        typer.Option("--bundled", help="Take small extractors that need no download: EfficientNet-Lite0 and FPFH."),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Set an argument of the method's constructor, such as ratio=10% or image-size=256; repeatable.",
            show_default=False,
        ),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(help="Number of training samples to draw and fit on, without validation.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the method and of the few-shot draw.")] = 0,
    workdir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results of the stages (default: OUT.fit, removed at the end).", show_default=False
        ),
    ] = None,
    layout: Layout = "auto",
    units: Units = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fit a method on a category's normal samples, or one model for each category, and save it.

    After a crash or Ctrl-C the same command says what is there, and goes on with it: features so far, and finished
    stages.
    """
    from mmad_bank._internal.resume import remove_stages

    job = _Job(
        method, dataset, out, parse_names(categories), workdir, layout, units, few_shot, seed, show_progress(as_json)
    )  # fmt: skip
    job.choose_arguments(settings or [], embedded, str(check_device(device)))
    job.open()
    job.check_outputs(overwrite)
    with working_alone(job.workdir), going_on():
        job.check_outputs(overwrite)  # once more: another run may have ended meanwhile
        models = job.run()
        if not job.keep:
            remove_stages(job.workdir)
    rows = {}
    for model in models:
        rows[model["category"]] = f"{model['path']}, {size(model['bytes'])}, fitted on {model['images']} images in " + (
            seconds(model["seconds"]) if model["seconds"] else "an earlier run"
        )
    result = {"method": job.method.name, "arguments": job.arguments, "models": models}
    emit(result, rows, title=f"fitted {job.method.name}", as_json=as_json)
    end({name: why for model in models for name, why in model["left_out"].items()})


class _Job:
    """What ``fit`` is to do: one model a category."""

    def __init__(
        self, method: str, dataset: Path, out: Path, categories: list[str] | None, workdir: Path | None, layout: str,
        units: str | None, few_shot: int | None, seed: int, progress: bool,
    ) -> None:  # fmt: skip
        from mmad_bank.methods import method_class, names

        check_method_first(method, dataset, names())
        self.method = method_class(method.lower())
        self.dataset, self.out, self.categories = dataset, out, categories
        self.layout, self.units = layout, units
        self.workdir = workdir or named_after(out, ".fit")
        self.keep = workdir is not None
        self.few_shot, self.seed, self.progress = few_shot, seed, progress
        self.arguments: dict[str, Any] = {}
        self.spelled: dict[str, str] = {}
        self.splits: dict[str, tuple[SampleDataset, SampleDataset | None]] = {}

    def choose_arguments(self, settings: list[str], embedded: bool, device: str) -> None:
        """Put the constructor's arguments together; what --set says comes last. The constructor checks them."""
        from mmad_bank.cli._arguments import parse_settings
        from mmad_bank.cli._group import spelling

        arguments = self.method.bundled_arguments() if embedded else {}
        names = self.method.argument_names()
        arguments |= {n: v for n, v in (("seed", self.seed), ("device", device)) if n in names}
        chosen = parse_settings(self.method, settings)
        self.arguments = {**arguments, **chosen.arguments}
        self.spelled = chosen.spelled
        with spelling(self.spelled):
            self.make()

    def make(self) -> Method:
        """Return the method, not fitted."""
        return self.method(**self.arguments)

    def open(self) -> None:
        """Open all splits and look at all outputs before the work."""
        with doing(f"looking through {self.dataset}"):
            self._open_splits()

    def _open_splits(self) -> None:
        from mmad_bank.data import categories_of, few_shot, open_dataset

        names = self.categories or categories_of(self.dataset, self.layout)
        for name in names:
            train = open_dataset(self.dataset, name, "train", self.layout, units=self.units)
            if self.few_shot is not None:
                self.splits[name] = few_shot(train, self.few_shot, self.seed), None
                continue
            self.splits[name] = train, self._open_validation(name)
        say_unread(self.dataset, names, self.layout)

    def _open_validation(self, category: str) -> SampleDataset | None:
        """Open the validation split; not every data set has one, but a method that asks for it is fitted otherwise."""
        from mmad_bank.data import open_dataset

        try:
            return open_dataset(self.dataset, category, "validation", self.layout, units=self.units)
        except MissingSplitError as error:
            if self.make().uses_validation:
                print(f"note: fitted without validation: {error}", file=sys.stderr)
            return None

    def check_outputs(self, overwrite: bool) -> None:
        """Refuse models that are there, unless an earlier run of this job, which did not end, has saved them."""
        from mmad_bank._internal.resume import fingerprint_of

        if len(self.splits) > 1 and (self.out / "model.json").exists():
            raise InputError(
                f"--out: expected a folder for models of {', '.join(self.splits)}, found a model in {self.out},"
                " which would be taken for all of them"
            )
        for name in self.splits:
            path = self.target(name)
            check_output_folder(path, "--out")
            check_not_current(path)
            if not overwrite and fingerprint_of(self.workdir) != self._fingerprint():
                check_output_folder(path, "--out", outputs=("model.json",))
            if path.exists() and any(path.iterdir()) and not (path / "model.json").is_file():
                raise InputError(f"--out: expected a new folder or a saved model, found something else in {path}")

    def target(self, category: str) -> Path:
        """Return a category's model folder."""
        return self.out if len(self.splits) == 1 else self.out / category

    def run(self) -> list[dict[str, Any]]:
        """Fit and save what has not been saved by an earlier run of the same job."""
        from mmad_bank._internal.resume import Stages
        from mmad_bank.cli._group import spelling

        stages = Stages(self.workdir, self._fingerprint())
        models = []
        for number, category in enumerate(self.splits, 1):
            with within(category, number, len(self.splits)), spelling(self.spelled):
                models.append(self._fit_once(category, stages))
        return models

    def _fit_once(self, category: str, stages: Stages) -> dict[str, Any]:
        """Fit a category's model unless it is there; a note says so, the stages' results have gone by then."""
        from mmad_bank._internal.resume import remove_stages

        note, model = stages.folder / f"{category}.done", self.target(category) / "model.json"
        if not (note.is_file() and model.is_file() and note.read_text() == _checksum(model)):
            note.unlink(missing_ok=True)
        facts: list[dict[str, Any]] = []

        def make(path: Path) -> None:
            facts.append(self._fit(category, stages.folder / category))
            path.write_text(_checksum(model))

        stages.run(note.name, make)
        if not self.keep:
            remove_stages(stages.folder / category)
        return facts[0] if facts else _describe_model(category, self.target(category), 0.0)

    def _fit(self, category: str, workdir: Path) -> dict[str, Any]:
        train, validation = self.splits[category]
        begin = time.perf_counter()
        model = self.make().fit(train, validation=validation, workdir=workdir, progress=self.progress)
        with doing("saving the model"):
            model.save(self.target(category))
        return _describe_model(category, self.target(category), time.perf_counter() - begin)

    def _fingerprint(self) -> dict[str, Any]:
        """Say what the models depend on."""
        from mmad_bank.methods.base import files_named

        arguments = {name: value for name, value in self.arguments.items() if name != "device"}
        samples = {
            name: [[record.id, record.changed] for split in splits if split for record in split.records]
            for name, splits in self.splits.items()
        }
        content = {"method": self.method.name, "arguments": arguments, "samples": samples, "path": str(self.dataset)}
        content |= files_named(arguments)
        content |= {"units": self.units} if self.units else {}
        return json.loads(json.dumps(content))


def _checksum(path: Path) -> str:
    """Return what tells one model's list of contents from another's."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _describe_model(category: str, path: Path, taken: float) -> dict[str, Any]:
    """Return what the command says of a saved model."""
    from mmad_bank.methods.base import read_manifest

    manifest = read_manifest(path)
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "category": category, "path": str(path), "images": len(manifest["train_ids"]), "left_out": manifest["skipped"],
        "bytes": n_bytes, "seconds": taken,
    }  # fmt: skip
