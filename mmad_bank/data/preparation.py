"""Preprocess a whole data set once: in parallel, resumably, into another folder.

Each sample's point cloud is written last and carries, as its TIFF description, a key made of the source files' sizes
and times and of all settings, and behind it the sample's frame in the original picture. A later run takes what has the
right key as done. So there is no journal that a crash could leave behind the files, and a killed run loses no more than
the samples that were being worked on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmad_bank._internal.files import check_not_current, named_after, real_path, write_text
from mmad_bank._internal.json_text import json_text
from mmad_bank._internal.kept import tell
from mmad_bank._internal.parallel import run_parallel
from mmad_bank._internal.progress import progress_bar
from mmad_bank.data import layouts
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.names import SPLITS
from mmad_bank.data.pictures import PicturesDataset
from mmad_bank.data.prepared import MANIFEST, is_prepared, manifest_around, read_prepared
from mmad_bank.data.preprocessing import check_told_by_cloud
from mmad_bank.data.recipes import Preprocessing
from mmad_bank.data.replacing import (
    check_replaceable,
    foreign_file,
    is_empty,
    put_in_place,
    set_aside,
    word_differences,
)
from mmad_bank.data.sample_preparation import FILES, VERSION, Task, is_done, make_task, run_task
from mmad_bank.errors import InputError, MissingSplitError, NoneUsableError, did_you_mean

_WORK = ".prepare"  # ending of the folder in which a replacement is made


@dataclass
class PreparationResult:
    """What a run did.

    Attributes:
        path: The prepared data set.
        written: Number of samples preprocessed in this run.
        cached: Number of samples found done.
        failed: Line for each sample left out that says why.
        set_aside: Samples that an earlier run prepared and that are gone or cannot be used now: moved to the folder
            ``.set_aside`` in the data set.
        settings: The settings, as in the manifest.
    """

    path: Path
    written: int = 0
    cached: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return all of it for a JSON object."""
        return {
            "path": str(self.path),
            "written": self.written,
            "cached": self.cached,
            "failed": self.failed,
            "set_aside": self.set_aside,
            "settings": self.settings,
        }


def prepare(
    dataset_path: str | Path,
    out_dir: str | Path,
    settings: Preprocessing | None = None,
    *,
    categories: Sequence[str] | None = None,
    layout: str = "auto",
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> PreparationResult:
    """Preprocess all samples of a data set into another folder, in the layout of MVTec 3D-AD.

    Samples that are done are skipped. A sample that cannot be read, or in which no object is found, is left out and
    reported; the others go on. The originals are only read.

    Nothing that was prepared before is lost: other settings are refused without ``overwrite``; samples that are gone
    are set aside; and where no sample can be used, what was there stays.

    Args:
        dataset_path: The data set.
        out_dir: New folder, or one that was prepared from the same data set with the same settings.
        settings: The settings; default: M3DM's recipe, for Eyecandies ``"eyecandies"``, for pictures without point
            clouds ``"keep"``.
        categories: Names of the categories to prepare; default: all.
        layout: Layout, as in :func:`mmad_bank.data.open_dataset`.
        workers: Number of processes. More than one need the caller's module guarded by ``if __name__ == "__main__"``.
        overwrite: Whether to prepare all anew in the folder ``out_dir.prepare``, which replaces ``out_dir`` when it is
            whole. A run that was stopped goes on there.
        progress: Whether to show a bar.

    Returns:
        What was done. ``out_dir/prepared.json`` holds the same.

    Raises:
        InputError: There is no data set, or it is a prepared one, or ``out_dir`` lies within it, holds something else
            or other settings; or it should be overwritten and no sample can be used.

    Example:
        >>> prepare("mvtec_3d", "prepared", workers=8).failed  # doctest: +SKIP
        {}
    """
    source, out = Path(dataset_path), Path(out_dir)
    if workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    if layouts.layout_of(source, layout) == PicturesDataset.layout:
        raise InputError(
            f"{source}: expected a data set, found plain pictures; fit and predict take them as they are, and prepare"
            " them on the way"
        )
    found = layouts.categories_of(source, layout)
    for name in categories or ():
        if name not in found:
            near = did_you_mean(name, found)
            raise InputError(f"categories: expected some of {', '.join(found)} (in {source}), found {name!r}{near}")
    chosen = list(dict.fromkeys(categories or found))
    datasets = _open_splits(source, chosen, layout)
    settings = settings or _own_settings(datasets)
    if settings.units is None and datasets[0].units is not None:
        settings = replace(settings, units=datasets[0].units)  # of Real3D-AD, millimetres
    _check_raw(source, datasets)
    for one in datasets:
        check_told_by_cloud(settings, one.modalities, str(source))
    _check_place(source, out)
    job = _Job(real_path(source), datasets, settings, chosen, workers, progress)
    # Beside the folder itself, not beside a link to it: only there can its files be moved into their place.
    work = named_after(real_path(out), _WORK)
    if not overwrite or not read_prepared(out):
        _check_same(out, job)
        result = _fill(out, job)
        if result.written + result.cached:
            _drop_work(work, job)
        return result
    _check_overwritten(out, job)
    _clear_work(work, job)
    result = _fill(work, job, replaces=real_path(out).name)
    if not result.written + result.cached:
        shutil.rmtree(work)
        raise NoneUsableError(f"{source}: no sample can be used, {out} stays as it is", result.failed)
    final = {name: value for name, value in read_prepared(work).items() if name != "replaces"}
    put_in_place(work, out, MANIFEST, json_text(final))
    return replace(result, path=out)


@dataclass(frozen=True)
class _Job:
    """What is to be prepared, and how."""

    source: Path
    datasets: list[SampleDataset]
    settings: Preprocessing
    categories: list[str]
    workers: int
    progress: bool

    def tasks(self, out: Path) -> list[Task]:
        """Return one task per sample."""
        each = ((dataset, record) for dataset in self.datasets for record in dataset.records)
        return [make_task(dataset, record, out, self.settings) for dataset, record in each]

    @property
    def sources(self) -> dict[str, str]:
        """The data set that each category comes from."""
        return dict.fromkeys(self.categories, str(self.source))


def _fill(out: Path, job: _Job, **note: str) -> PreparationResult:
    """Prepare what is not done into a folder that holds nothing else; ``note`` goes into its manifest."""
    result = PreparationResult(out, settings=job.settings.as_json())
    out.mkdir(parents=True, exist_ok=True)
    earlier = read_prepared(out)
    manifest = _Manifest(out, earlier, job, note)
    tasks = job.tasks(out)
    pending = [task for task in tasks if not is_done(task)]
    result.cached = len(tasks) - len(pending)
    manifest.write(result, complete=False)

    if pending:
        tell(out, lambda: _word_done(result.cached + result.written, len(tasks)))

    def report(done: int, outcome: tuple[str, str]) -> None:
        name, problem = outcome
        if problem:
            result.failed[name] = problem
        else:
            result.written += 1
        advance(result.cached + done)

    with progress_bar("preparing samples", len(tasks)) if job.progress else nullcontext(lambda done: None) as advance:
        run_parallel(run_task, pending, job.workers, report)
    result.failed = dict(sorted(result.failed.items()))
    if not result.written + result.cached and earlier:
        manifest.restore()
        return result
    current = {task.main_file for task in tasks if task.name not in result.failed}
    result.set_aside = set_aside(out, _stale(out, job.categories, current), FILES)
    manifest.write(result, complete=True)
    return result


def _word_done(done: int, total: int) -> str:
    return f"{done:,} of {total:,} prepared samples" if done else ""


def default_settings(
    path: str | Path, layout: str = "auto", *, categories: Sequence[str] | None = None
) -> Preprocessing:
    """Return the recipe that fits a data set: its own, as Eyecandies and pictures alone have, or else ``"m3dm"``.

    Raises:
        InputError: There is no data set, or some of its categories need another recipe than others.
    """
    root = Path(path)
    return _own_settings(_open_splits(root, list(categories or layouts.categories_of(root, layout)), layout))


def _own_settings(datasets: Sequence[SampleDataset]) -> Preprocessing:
    kinds: dict[str, SampleDataset] = {}
    for one in datasets:
        kinds.setdefault(one.recipe or "m3dm", one)
    if len(kinds) > 1:
        found = " and ".join(f"{name} ({one.categories[0]})" for name, one in kinds.items())
        raise InputError(
            f"{datasets[0].path}: expected categories that one recipe prepares, found some for {found}; name the"
            " recipe, or the categories"
        )
    return Preprocessing.recipe(*kinds)


def _open_splits(source: Path, categories: Sequence[str], layout: str) -> list[SampleDataset]:
    """Open whatever splits the categories have; a category needs one."""
    datasets = []
    for category in categories:
        opened: list[SampleDataset] = []
        for split in SPLITS:
            try:
                opened.append(layouts.open_dataset(source, category, split, layout))
            except MissingSplitError as error:
                problem = error
        if not opened:
            raise problem
        datasets += opened
    return datasets


def _check_raw(source: Path, datasets: Sequence[SampleDataset]) -> None:
    """Refuse data that are prepared already: padding would count as picture, and the way back to it would be lost.

    Copies of prepared samples that lack the manifest are told by the keys in their clouds.
    """
    manifest = manifest_around(datasets[0].path)
    if not manifest and not any(is_prepared(dataset.records[0].main_file) for dataset in datasets):
        return
    how = raw = ""
    if manifest:
        settings, known = manifest["settings"], manifest.get("sources", {})
        how = f" ({settings.get('size')} pixels, background {settings.get('background')})"
        places = dict.fromkeys(known[one.categories[0]] for one in datasets if one.categories[0] in known)
        raw = f": {', '.join(places)}" if places else ""
    raise InputError(f"{source}: is prepared already{how}; expected the raw data{raw}")


def _check_place(source: Path, out: Path) -> None:
    """Refuse a folder in which something of the user's could be overwritten."""
    inner, outer = real_path(out), real_path(source)
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise InputError(f"{out}: expected a folder outside the data set {source}, which stays as it is")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder, found a file")
    if out.exists() and not read_prepared(out) and not is_empty(out, MANIFEST):
        raise InputError(f"{out}: expected a new or prepared folder, found one that holds files, no {MANIFEST}")


def _check_same(out: Path, job: _Job) -> None:
    """Refuse to mix two kinds of data: what is there must have been prepared of this data set, with these settings."""
    manifest = read_prepared(out)
    # A run that could use no sample left its list of reasons only: the next one, with the right settings, takes over.
    if not manifest or not any(path.is_file() and path.name != MANIFEST for path in out.rglob("*")):
        return
    how = "name another folder, or replace it with overwrite=True (--overwrite)"
    if manifest["settings"] != job.settings.as_json():
        found = word_differences(manifest["settings"], job.settings.as_json())
        raise InputError(f"{out}: prepared with other settings ({found}); {how}")
    sources = manifest.get("sources", {})
    for name in job.categories:
        if sources.get(name, str(job.source)) != str(job.source) and not _has_moved(out, name, job):
            raise InputError(f"{out}: {name} in it was prepared from {sources[name]}, not {job.source}; {how}")


def _has_moved(out: Path, category: str, job: _Job) -> bool:
    """Tell whether what was prepared of a category was made of these very files, under another name of the folder."""
    return any(is_done(task) for task in job.tasks(out) if task.record.category == category)


def _check_overwritten(out: Path, job: _Job) -> None:
    """Refuse to replace a prepared folder by one that lacks something of it, or with which other files would go."""
    others = sorted(set(read_prepared(out).get("categories", ())) - set(job.categories))
    if others:
        raise InputError(
            f"{out}: holds {', '.join(others)} too, which would go; expected another folder, or all its categories"
        )
    check_replaceable(out, MANIFEST)
    check_not_current(out)


def _clear_work(work: Path, job: _Job) -> None:
    """Remove what a run with other settings, which was stopped, has left in the folder that this one works in."""
    _check_place(job.source, work)
    manifest = read_prepared(work)
    if manifest and not _is_ours(work, manifest):
        raise InputError(f"{work}: expected no folder of this name, in which the new data set is prepared")
    if manifest and not _is_of(manifest, job):
        shutil.rmtree(work)


def _drop_work(work: Path, job: _Job) -> None:
    """Remove what a stopped run has left that was to replace the data set by what it holds now."""
    try:
        manifest = read_prepared(work)
    except InputError:
        return  # not ours
    mine = _is_ours(work, manifest) and _is_of(manifest, job) if manifest else _is_left_empty(work)
    if mine:
        shutil.rmtree(work)


def _is_left_empty(work: Path) -> bool:
    return work.is_dir() and not work.is_symlink() and is_empty(work, MANIFEST)


def _is_ours(work: Path, manifest: dict[str, Any]) -> bool:
    """Tell whether a folder was made to replace the one that it is named after; users' data may be named so, too."""
    made = manifest.get("replaces") == work.name.removesuffix(_WORK)
    return made and not work.is_symlink() and foreign_file(work, MANIFEST) is None


def _is_of(manifest: dict[str, Any], job: _Job) -> bool:
    return (manifest["settings"], manifest.get("sources")) == (job.settings.as_json(), job.sources)


class _Manifest:
    """The file that says what a prepared folder holds: settings, sources and outcome."""

    def __init__(self, out: Path, earlier: dict[str, Any], job: _Job, note: dict[str, str]) -> None:
        self.path, self.earlier = out / MANIFEST, earlier
        self.facts = {
            "version": VERSION, "complete": False, **note,
            "categories": sorted({*earlier.get("categories", ()), *job.categories}),
            "sources": {**earlier.get("sources", {}), **job.sources},
        }  # fmt: skip

    def write(self, result: PreparationResult, *, complete: bool) -> None:
        """Write it; ``complete`` says that the run has come to its end."""
        facts = {**self.facts, "complete": complete, **result.as_json()}
        del facts["path"]
        self._write(facts)

    def restore(self) -> None:
        """Put back what was there before the run."""
        self._write(self.earlier)

    def _write(self, facts: dict[str, Any]) -> None:
        write_text(self.path, json_text(facts))


def _stale(out: Path, categories: Sequence[str], current: set[Path]) -> list[Path]:
    """List the samples that an earlier run prepared and this one has not, by the files that carry our key."""
    return [
        file
        for category in categories
        for pattern in ("*/*/xyz/*.tiff", "*/*/rgb/*.png")
        for file in sorted((out / category).glob(pattern))
        if file not in current and is_prepared(file)
    ]
