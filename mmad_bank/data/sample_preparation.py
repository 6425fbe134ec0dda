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
from mmad_bank.data.sample import Record, Sample
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
    rgb: Path
    xyz: Path
    mask: Path
    settings: Preprocessing

    @property
    def name(self) -> str:
        """The sample's id."""
        return self.record.id


def make_task(dataset: SampleDataset, record: Record, out: Path, settings: Preprocessing) -> Task:
    """Say where a sample goes."""
    folder = out / record.category / record.split / record.defect
    rgb, xyz, mask = (folder / kind / f"{record.name}{suffix}" for kind, suffix in FILES)
    # Workers get the reader without its list of records: one sample per task is all they need.
    return Task(dataset.select([]), record, rgb, xyz, mask, settings)


def _key(task: Task) -> str:
    """Return the key of a sample's files and settings; empty if a file is missing."""
    files = _sources(task.record)
    if not all(path.is_file() for path in files):
        return ""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([VERSION, task.dataset.layout, stats, task.settings.as_json()], sort_keys=True)
    return KEY_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def _sources(record: Record) -> list[Path]:
    """List all files that a sample depends on: its own, and for Eyecandies depth range and pose."""
    if not record.xyz.name.endswith("_depth.png"):
        return list(record.files)
    prefix = str(record.xyz).removesuffix("depth.png")
    return [*record.files, Path(f"{prefix}info_depth.yaml"), Path(f"{prefix}pose.txt")]


def is_done(task: Task) -> bool:
    """Say whether a sample's files are all there, made from these sources with these settings."""
    outputs = (task.rgb, task.xyz) if task.record.mask is None else (task.rgb, task.xyz, task.mask)
    return all(path.is_file() for path in outputs) and key_of(task.xyz) == (_key(task) or None)


def run_task(task: Task) -> tuple[str, str]:
    """Preprocess a sample; return its name, and why it is left out if it is."""
    key = _key(task)
    try:
        _write(task, preprocess(task.dataset.read(task.record), task.settings), key)
    except InputError as error:
        return task.name, str(error)
    return task.name, ""


def _write(task: Task, sample: Sample, key: str) -> None:
    """Write a sample's files, the point cloud with the key last."""
    masked = sample.mask is not None and task.record.mask is not None
    for path in (task.rgb, task.xyz, *([task.mask] if masked else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # the names are given in reverse: the cloud's last
        xyz, rgb = (stack.enter_context(replacing(path)) for path in (task.xyz, task.rgb))
        encode_png(rgb, (sample.rgb.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8))
        if masked:
            assert sample.mask is not None
            encode_png(stack.enter_context(replacing(task.mask)), sample.mask.numpy().astype(np.uint8) * 255)
        assert sample.frame is not None
        tag = key + FRAME_MARK + sample.frame.as_text()
        encode_xyz(xyz, sample.xyz.numpy().transpose(1, 2, 0), tag)
        # All is whole beside its place. Without its cloud a sample is not taken for done, nor read together with
        # another run's picture.
        task.xyz.unlink(missing_ok=True)
        if not masked:
            task.mask.unlink(missing_ok=True)
