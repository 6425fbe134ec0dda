"""The command that writes the features of a data set: extract."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.file_names import EXTRACTION
from mmad_bank._internal.files import real_path
from mmad_bank._internal.folders import working_alone
from mmad_bank.cli._command import add
from mmad_bank.cli._options import (
    Address,
    Batch,
    Categories,
    DatasetFolder,
    Device,
    Json,
    Layout,
    Overwrite,
    RayWorkers,
    Units,
)
from mmad_bank.cli._output import check_output_folder, emit, end, is_unfinished, seconds, show_progress, unfinished
from mmad_bank.cli._values import check_device, parse_categories
from mmad_bank.cli._words import SplitName, option
from mmad_bank.cli._workers import check_workers, cluster_of
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.data import Sample, SampleDataset


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, extract)


def extract(
    dataset: DatasetFolder,
    out: Annotated[Path, option("--out", "Folder", ", with rgb.npy, xyz.npy and extraction.json")],
    categories: Categories = None,
    split: Annotated[SplitName, option("--split")] = "train",
    rgb: Annotated[str, option("--rgb")] = "efficientnet_lite0",
    rgb_weights: Annotated[str, option("--rgb-weights")] = "pretrained",
    xyz: Annotated[str, option("--xyz")] = "fpfh",
    xyz_weights: Annotated[str, option("--xyz-weights")] = "pretrained",
    image_size: Annotated[int, option("--image-size", "the prepared", "")] = 224,
    grid: Annotated[int, option("--grid")] = 28,
    batch: Batch = 4,
    layout: Layout = "auto",
    units: Units = None,
    device: Device = "cpu",
    workers: RayWorkers = None,
    address: Address = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the patch features of a split to dumps (images, patches, D), which build and score take."""
    target, names = check_device(device), parse_categories(categories)
    check_workers(workers, address, device)
    wanted = {"rgb": (rgb, rgb_weights), "xyz": (xyz, xyz_weights)}
    job = {"extract": str(real_path(dataset)), "categories": names, "split": split, "units": units, **wanted}
    files = (EXTRACTION, *(f"{name}.npy" for name, (model, _) in wanted.items() if model != "none"))
    check_output_folder(out, "--out", outputs=files, overwrite=overwrite or is_unfinished(out, job))
    samples = _open_split(dataset, names, split, layout, units)
    shared: dict[str, Any] = {"grid": (grid, grid), "image_size": image_size}
    begin = time.perf_counter()
    _check_modalities(samples, wanted)
    networks = _networks(wanted, shared)
    with _place_for_dumps(out, job) as folder, cluster_of(workers, address):
        facts = _extract(samples, folder, out, networks, target, image_size, batch, show_progress(as_json), workers)
    facts |= {"dataset": str(dataset), "split": split, "seconds": time.perf_counter() - begin}
    rows = {
        "images": f"{len(facts['ids']):,}" + (f", {len(facts['left_out'])} left out" if facts["left_out"] else ""),
        **{name: f"{one['file']}, {one['dim']} dimensions, {one['extractor']}" for name, one in facts["dumps"].items()},
        "time": seconds(facts["seconds"]),
    }
    emit({"path": str(out), **facts}, rows, title=f"extracted into {out}", as_json=as_json)
    end(facts["left_out"])


def _open_split(
    dataset: Path, categories: Sequence[str] | None, split: str, layout: str, units: str | None
) -> SampleDataset:
    """Open a split of some categories, in their order; None takes all."""
    from mmad_bank.data import open_dataset

    names: Sequence[str | None] = categories or [None]
    opened = [open_dataset(dataset, name, split, layout, units=units) for name in names]
    joined = opened[0].select(range(len(opened[0])))
    joined.records = tuple(record for one in opened for record in one.records)
    return joined


def _check_modalities(samples: SampleDataset, wanted: Mapping[str, tuple[str, str]]) -> None:
    """Refuse an extractor of what the data set does not have."""
    for name, what in (("rgb", "pictures"), ("xyz", "point clouds")):
        if wanted[name][0] != "none" and name not in samples.modalities:
            raise InputError(f"--{name}: expected none, as {samples.path} has no {what}, found {wanted[name][0]!r}")


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
    batch: int, progress: bool, workers: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Write the dumps and the list of what is in them into a folder whose files will be in ``out``."""
    from mmad_bank._internal.json_text import json_text
    from mmad_bank.extraction import Extractors, extract_to

    extractors = Extractors(networks, device)
    prepare = _preparing(samples, image_size)
    elsewhere = None
    if workers is not None:
        from mmad_bank.distributed.extracting import Extraction, described_elsewhere

        work = Extraction(samples, extractors, prepare)
        elsewhere = partial(described_elsewhere, work, batch, workers=workers)
    ids, left_out = extract_to(
        folder, samples, extractors, prepare, batch=batch, progress=progress, elsewhere=elsewhere
    )
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
    (folder / EXTRACTION).write_text(json_text(facts), encoding="utf-8")
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
            for file in sorted(beside.iterdir(), key=lambda file: file.name == EXTRACTION):
                file.replace(out / file.name)
            beside.rmdir()


def _holds_an_extraction_only(out: Path) -> bool:
    if not out.exists():
        return True
    names = {path.name for path in out.iterdir()}
    if out.is_mount() or out.samefile(Path.cwd()):
        return False
    return EXTRACTION in names and names <= {EXTRACTION, "rgb.npy", "xyz.npy"}


def _remove_extraction(out: Path) -> None:
    """Remove an extraction whose successor is whole: its list, and the dumps that the list names."""
    listing = out / EXTRACTION
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

    from mmad_bank.data import Preprocessing, preprocess

    if samples.preparation is not None:
        if samples.preparation.size != image_size:
            found = samples.preparation.size
            raise InputError(f"--image-size: {samples.path} was prepared in {found} pixels, found {image_size}")
        return lambda sample: sample
    settings = replace(Preprocessing.recipe(samples.recipe or "m3dm"), size=image_size)

    def prepare(sample: Sample) -> Sample:
        return preprocess(sample, settings)

    return prepare
