"""Preprocess a whole data set once: in parallel, resumably, into another folder.

Each sample's point cloud is written last and carries, as its TIFF description, a key made of the source files' sizes
and times and of all settings, and behind it the sample's frame in the original picture. A later run takes what has the
right key as done. So there is no journal that a crash could leave behind the files, and a killed run loses no more than
the samples that were being worked on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmad_bank._files import replacing
from mmad_bank._progress import progress_bar
from mmad_bank.data import layouts
from mmad_bank.data._images import read_tag, write_png, write_xyz
from mmad_bank.data._names import SPLITS
from mmad_bank.data._parallel import run_parallel
from mmad_bank.data.eyecandies import EyecandiesDataset
from mmad_bank.data.frame import Frame
from mmad_bank.data.preprocessing import Preprocessing, preprocess
from mmad_bank.data.sample import Record, Sample, SampleDataset
from mmad_bank.errors import InputError

MANIFEST = "prepared.json"
_KEY_PREFIX = "mmad-bank prepared "
_FRAME_MARK = " frame "
# Raise it when the same settings give other files.
_VERSION = 2


@dataclass
class PreparationResult:
    """What a run did.

    Attributes:
        path: The prepared data set.
        written: Samples preprocessed in this run.
        cached: Samples found done.
        failed: Sample → the line that says why it is left out.
        settings: As in the manifest.
    """

    path: Path
    written: int = 0
    cached: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return all of it for a JSON object."""
        return {
            "path": str(self.path),
            "written": self.written,
            "cached": self.cached,
            "failed": self.failed,
            "settings": self.settings,
        }


@dataclass(frozen=True)
class _Task:
    """One sample: its reader and record, where it goes, and the key of what would be written."""

    dataset: SampleDataset
    record: Record
    rgb: Path
    xyz: Path
    mask: Path
    settings: Preprocessing

    @property
    def name(self) -> str:
        return self.record.id


def prepare(
    dataset_path: str | Path,
    out_dir: str | Path,
    settings: Preprocessing | None = None,
    *,
    categories: Sequence[str] | None = None,
    layout: str = "auto",
    workers: int = 1,
    progress: bool = False,
) -> PreparationResult:
    """Preprocess all samples of a data set into another folder, in the layout of MVTec 3D-AD.

    Samples that are done are skipped. A sample that cannot be read, or in which no object is found, is left out and
    reported; the others go on. The originals are only read.

    Args:
        dataset_path: The data set.
        out_dir: New folder, or one that was prepared with the same settings.
        settings: Default: M3DM's recipe, for Eyecandies ``"eyecandies"``.
        categories: Default: all.
        layout: As in :func:`mmad_bank.data.open_dataset`.
        workers: Processes. More than one need the caller's module guarded by ``if __name__ == "__main__"``.
        progress: Whether to show a bar.

    Returns:
        What was done. ``out_dir/prepared.json`` holds the same.

    Raises:
        InputError: There is no data set, or ``out_dir`` lies within it, holds something else or other settings.

    Example:
        >>> prepare("mvtec_3d", "prepared", workers=8).failed  # doctest: +SKIP
        {}
    """
    source, out = Path(dataset_path), Path(out_dir)
    if workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    found = layouts.categories_of(source, layout)
    for name in categories or ():
        if name not in found:
            raise InputError(f"categories: expected some of {', '.join(found)} (in {source}), found {name!r}")
    chosen = list(dict.fromkeys(categories or found))
    datasets = _open_splits(source, chosen, layout)
    if settings is None:
        settings = default_settings(source, layout)
    _check_out(source, out, settings, chosen)
    result = PreparationResult(out, settings=settings.as_json())
    tasks = [_task(dataset, record, out, settings) for dataset in datasets for record in dataset.records]
    out.mkdir(parents=True, exist_ok=True)
    prepared = sorted({*_read_manifest(out).get("categories", ()), *chosen})
    _write_manifest(result, prepared, complete=False)

    pending = [task for task in tasks if not _is_done(task)]
    result.cached = len(tasks) - len(pending)

    def report(done: int, outcome: tuple[str, str]) -> None:
        name, problem = outcome
        if problem:
            result.failed[name] = problem
        else:
            result.written += 1
        advance(result.cached + done)

    with progress_bar("preparing", len(tasks)) if progress else nullcontext(lambda done: None) as advance:
        run_parallel(_run, pending, workers, report)
    _remove_stale(out, chosen, {task.xyz for task in tasks if task.name not in result.failed})
    result.failed = dict(sorted(result.failed.items()))
    _write_manifest(result, prepared, complete=True)
    return result


def default_settings(path: str | Path, layout: str = "auto") -> Preprocessing:
    """Return the recipe that fits a data set: ``"eyecandies"`` for Eyecandies, ``"m3dm"`` for all others."""
    is_eyecandies = layouts.layout_of(path, layout) == EyecandiesDataset.layout
    return Preprocessing.recipe("eyecandies" if is_eyecandies else "m3dm")


def preparation_of(path: str | Path) -> Preprocessing | None:
    """Tell whether a data set has been prepared, so that nobody preprocesses it again.

    Args:
        path: The data set's folder, or one category's.

    Returns:
        The settings it was prepared with; None for one as a sensor made it.

    Raises:
        InputError: ``prepared.json`` is there and is something else.
    """
    root = Path(path)
    manifest = _read_manifest(root) or _read_manifest(root.resolve().parent)
    if not manifest:
        return None
    try:
        return Preprocessing(**manifest["settings"])
    except TypeError:
        raise InputError(f"{root / MANIFEST}: expected settings of this version, found others; prepare anew") from None


def frame_of(xyz: Path, size: tuple[int, int]) -> Frame | None:
    """Read from a prepared point cloud's file where its pixels lie in the picture that it was made of.

    Args:
        xyz: The file.
        size: Height and width of the prepared sample.

    Returns:
        None where the file does not say: older versions did not write it, and other programs do not.
    """
    _, mark, text = read_tag(xyz).partition(_FRAME_MARK)
    try:
        frame = Frame.from_text(text) if mark else None
    except InputError:
        return None
    return frame if frame is not None and size == (frame.size, frame.size) else None


def _open_splits(source: Path, categories: Sequence[str], layout: str) -> list[SampleDataset]:
    """Open whatever splits the categories have; a category needs one."""
    datasets = []
    for category in categories:
        opened: list[SampleDataset] = []
        for split in SPLITS:
            try:
                opened.append(layouts.open_dataset(source, category, split, layout))
            except InputError as error:
                problem = error
        if not opened:
            raise problem
        datasets += opened
    return datasets


def _check_out(source: Path, out: Path, settings: Preprocessing, categories: Sequence[str]) -> None:
    """Refuse a folder in which something of the user's could be overwritten, or two kinds of data be mixed."""
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise InputError(f"{out}: expected a folder outside the data set {source}, which stays as it is")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: expected a folder, found a file")
    manifest = _read_manifest(out)
    if not manifest:
        if any(out.iterdir()):
            raise InputError(f"{out}: expected a new or prepared folder, found one that holds files, no {MANIFEST}")
        return
    others = set(manifest.get("categories", ())) - set(categories)
    if manifest.get("settings") != settings.as_json() and others:
        names = ", ".join(sorted(others))
        raise InputError(f"{out}: {names} in it were prepared with other settings; expected another folder")


def _read_manifest(out: Path) -> dict[str, Any]:
    """Read a prepared folder's manifest; empty if there is none."""
    path = out / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or "settings" not in manifest:
        raise InputError(f"{path}: expected the manifest of a prepared data set, found something else")
    return manifest


def _write_manifest(result: PreparationResult, categories: Sequence[str], *, complete: bool) -> None:
    """Write settings and outcome."""
    facts = {"version": _VERSION, "complete": complete, "categories": list(categories), **result.as_json()}
    del facts["path"]
    with replacing(result.path / MANIFEST) as partial:
        partial.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _task(dataset: SampleDataset, record: Record, out: Path, settings: Preprocessing) -> _Task:
    """Say where a sample goes."""
    folder = out / record.category / record.split / record.defect
    paths = (folder / "rgb", folder / "xyz", folder / "gt")
    rgb, xyz, mask = (path / f"{record.name}{end}" for path, end in zip(paths, (".png", ".tiff", ".png"), strict=True))
    # Workers get the reader without its list of records: one sample a task is all they need.
    return _Task(dataset.select([]), record, rgb, xyz, mask, settings)


def _key(task: _Task) -> str:
    """Return the key of a sample's files and settings; empty if a file is missing."""
    files = _sources(task.record)
    if not all(path.is_file() for path in files):
        return ""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([_VERSION, task.dataset.layout, stats, task.settings.as_json()], sort_keys=True)
    return _KEY_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def _sources(record: Record) -> list[Path]:
    """List all files that a sample depends on: its own, and for Eyecandies depth range and pose."""
    if not record.xyz.name.endswith("_depth.png"):
        return list(record.files)
    prefix = str(record.xyz).removesuffix("depth.png")
    return [*record.files, Path(f"{prefix}info_depth.yaml"), Path(f"{prefix}pose.txt")]


def _is_done(task: _Task) -> bool:
    """Say whether a sample's files are all there, made from these sources with these settings."""
    outputs = (task.rgb, task.xyz) if task.record.mask is None else (task.rgb, task.xyz, task.mask)
    return all(path.is_file() for path in outputs) and _key_of(task.xyz) == (_key(task) or None)


def _key_of(xyz: Path) -> str:
    """Read the key that a prepared point cloud carries; empty if there is none."""
    return read_tag(xyz).partition(_FRAME_MARK)[0]


def _run(task: _Task) -> tuple[str, str]:
    """Preprocess a sample: its name, and why it is left out if it is."""
    key = _key(task)
    try:
        _write(task, preprocess(task.dataset.read(task.record), task.settings), key)
    except InputError as error:
        return task.name, str(error)
    return task.name, ""


def _write(task: _Task, sample: Sample, key: str) -> None:
    """Write a sample's files, the point cloud with the key last."""
    # Without its cloud a sample is not taken for done, nor read together with another run's cloud.
    task.xyz.unlink(missing_ok=True)
    task.mask.unlink(missing_ok=True)
    for path in (task.rgb, task.xyz):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_png(task.rgb, (sample.rgb.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8))
    if sample.mask is not None and task.record.mask is not None:
        task.mask.parent.mkdir(parents=True, exist_ok=True)
        write_png(task.mask, sample.mask.numpy().astype(np.uint8) * 255)
    assert sample.frame is not None
    write_xyz(task.xyz, sample.xyz.numpy().transpose(1, 2, 0), key + _FRAME_MARK + sample.frame.as_text())


def _remove_stale(out: Path, categories: Sequence[str], current: set[Path]) -> None:
    """Remove what an earlier run wrote for samples that are gone or bad now: only files that carry a key of ours."""
    for category in categories:
        for xyz in (out / category).glob("*/*/xyz/*.tiff"):
            if xyz in current or not read_tag(xyz).startswith(_KEY_PREFIX):
                continue
            folder = xyz.parent.parent
            for path in (xyz, folder / "rgb" / f"{xyz.stem}.png", folder / "gt" / f"{xyz.stem}.png"):
                path.unlink(missing_ok=True)
