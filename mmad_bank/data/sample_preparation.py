"""One sample's part of a preparation: where it goes, whether it is done, and its three files."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmad_bank._internal.files import replacing
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.prepared import FRAME_MARK, KEY_PREFIX, key_of
from mmad_bank.data.preprocessing import preprocess
from mmad_bank.data.recipes import Preprocessing
from mmad_bank.data.sample import Record, Sample, in_metres
from mmad_bank.data.writing import encode_png, encode_xyz
from mmad_bank.errors import InputError

FILES = (("rgb", ".png"), ("xyz", ".tiff"), ("gt", ".png"))
# Raise it when the same settings give other files.
VERSION = 2


@dataclass(frozen=True)
class Task:
    """One sample: its reader and record, where it goes, and the key of what would be written."""

    dataset: SampleDataset
    record: Record
    rgb: Path | None
    xyz: Path | None
    mask: Path
    settings: Preprocessing

    @property
    def main_file(self) -> Path:
        """The file that is written last and carries the key: the cloud, or the picture where there is no cloud."""
        file = self.xyz or self.rgb
        assert file is not None
        return file

    @property
    def name(self) -> str:
        """The sample's id."""
        return self.record.id


def make_task(dataset: SampleDataset, record: Record, out: Path, settings: Preprocessing) -> Task:
    """Say where a sample goes."""
    folder = out / record.category / record.split / record.defect
    rgb, xyz, mask = (folder / kind / f"{record.name}{suffix}" for kind, suffix in FILES)
    # Workers get the reader without its list of records: one sample per task is all they need.
    return Task(
        dataset.select([]), record, rgb if record.rgb is not None else None, xyz if record.xyz is not None else None,
        mask, settings,
    )  # fmt: skip


def _key(task: Task) -> str:
    """Return the key of a sample's files and settings; empty if a file is missing."""
    return key_for(task.dataset, task.record, task.settings)


def key_for(dataset: SampleDataset, record: Record, settings: Preprocessing) -> str:
    """Return the key that a raw sample's prepared file carries, of its files' names, sizes and dates, and the settings.

    Empty if a file is missing.
    """
    files = _sources(record)
    if not all(path.is_file() for path in files):
        return ""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([VERSION, dataset.layout, stats, settings.as_json()], sort_keys=True)
    return KEY_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def _sources(record: Record) -> list[Path]:
    """List all files that a sample depends on: its own, and for Eyecandies depth range and pose."""
    if record.xyz is None or not record.xyz.name.endswith("_depth.png"):
        return list(record.files)
    prefix = str(record.xyz).removesuffix("depth.png")
    return [*record.files, Path(f"{prefix}info_depth.yaml"), Path(f"{prefix}pose.txt")]


def is_done(task: Task) -> bool:
    """Say whether a sample's files are all there, made from these sources with these settings."""
    outputs = [task.rgb, task.xyz, None if task.record.mask is None else task.mask]
    there = all(path.is_file() for path in outputs if path is not None)
    return there and key_of(task.main_file) == (_key(task) or None)


def run_task(task: Task) -> tuple[str, str]:
    """Preprocess a sample; return its name, and why it is left out if it is."""
    key = _key(task)
    try:
        sample = in_metres(task.dataset.read(task.record), task.settings.units)
        _write(task, preprocess(sample, task.settings), key)
    except InputError as error:
        return task.name, str(error)
    return task.name, ""


def _write(task: Task, sample: Sample, key: str) -> None:
    """Write a sample's files, the one with the key last."""
    assert sample.frame is not None
    mask = None if task.record.mask is None else sample.mask
    tag = key + FRAME_MARK + sample.frame.as_text()
    with ExitStack() as stack:  # the names are given in reverse: the one of the file with the key last
        if task.xyz is not None:
            encode_xyz(_beside(task.xyz, stack), sample.xyz.numpy().transpose(1, 2, 0), tag)
        if task.rgb is not None:
            picture = (sample.rgb.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
            encode_png(_beside(task.rgb, stack), picture, tag if task.xyz is None else None)
        if mask is not None:
            encode_png(_beside(task.mask, stack), mask.numpy().astype(np.uint8) * 255)
        # All is whole beside its place. Without the file with the key a sample is not taken for done, nor read together
        # with another run's.
        task.main_file.unlink(missing_ok=True)
        if mask is None:
            task.mask.unlink(missing_ok=True)


def _beside(path: Path, stack: ExitStack) -> Path:
    """Return a file to write, which gets its name when the stack is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(replacing(path))
