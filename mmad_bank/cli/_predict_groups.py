"""The samples that predict scores, sorted by the model that scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmad_bank._internal.file_names import MODEL
from mmad_bank.cli._parts import parts_shown
from mmad_bank.cli._pictures import are_pictures, in_words, say_pictures
from mmad_bank.cli._sample_files import Read, Samples, main_files, read_files
from mmad_bank.cli.evaluation import check_models, choose_models, models_in
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.data import PartView, SampleDataset, ViewPattern


@dataclass
class Group:
    """Samples that one model scores.

    Attributes:
        name: The category; empty where there is one model only.
        model: Folder of the model.
        samples: Ids, and functions that read them.
        datasets: Data sets that they are of, by name; nothing for single files.
        alone: Files of the samples that were given file by file.
    """

    name: str
    model: Path
    samples: Samples
    datasets: list[tuple[str, SampleDataset]]
    alone: list[Path] = field(default_factory=list)

    def show(self, pattern: ViewPattern) -> tuple[dict[str, PartView], dict[str, str]]:
        """Put the samples in the order of the parts that they show; return which these are, and why some are none."""
        files = self.alone or [record.main_file for _, dataset in self.datasets for record in dataset.records]
        ids = [name for name, _ in self.samples]
        shown, left_out = parts_shown(pattern, ids, files, alone=bool(self.alone), category=self.name)
        reads = dict(self.samples)
        self.samples = [(name, reads[name]) for name in shown]
        return shown, left_out


def groups_of(
    model: Path, inputs: Sequence[Path], categories: list[str] | None, split: str, layout: str, units: str | None
) -> list[Group]:
    """Find the model of every sample."""
    if are_pictures(inputs, layout):
        return [_group_of_pictures(model, inputs, categories, layout)]
    if len(inputs) != 1 or not inputs[0].is_dir():
        found = _model_of_files(model, categories)
        return [Group("", found, list(read_files(inputs, units)), [], main_files(inputs))]
    from mmad_bank.data import categories_of, open_dataset

    place, there = inputs[0], categories_of(inputs[0], layout)
    chosen = choose_models(model, place, categories, layout)
    by_model: dict[Path, list[str]] = {}
    for name, folder in chosen.items():
        by_model.setdefault(folder, []).append(name)
    groups = []
    for folder, names in by_model.items():
        # All categories at once: some may lack the split.
        wanted = [None] if categories is None and names == there else names
        opened = [(str(place), open_dataset(place, name, split, layout, units=units)) for name in wanted]
        groups.append(Group(names[0] if len(by_model) > 1 else "", folder, samples_of(opened), opened))
    return groups


def files_found(inputs: Sequence[Path], groups: Sequence[Group]) -> list[Path]:
    """Return the pictures that lists and patterns name, none of which may be written over; folders guard their own."""
    if all(path.is_dir() for path in inputs):
        return []
    records = [record for group in groups for _, dataset in group.datasets for record in dataset.records]
    return [path for record in records for path in (record.rgb, record.xyz) if path is not None]


def _group_of_pictures(model: Path, inputs: Sequence[Path], categories: list[str] | None, layout: str) -> Group:
    """Open plain pictures, whose model nothing tells but the user."""
    from mmad_bank.data import PicturesDataset

    dataset = PicturesDataset(inputs, split="test")
    say_pictures(inputs, [dataset], layout)
    opened: list[tuple[str, SampleDataset]] = [(in_words(inputs), dataset)]
    return Group("", _model_of_files(model, categories), samples_of(opened), opened)


def samples_of(datasets: Sequence[tuple[str, SampleDataset]]) -> Samples:
    """Return ids, and functions that read the samples; no truth is asked for."""
    return [
        (record.id, partial(dataset.__getitem__, number))
        for dataset in (one.without_truths() for _, one in datasets)
        for number, record in enumerate(dataset.records)
    ]


def alone(read: Read) -> Read:
    """Return a function that reads the same sample and knows of no other, to be sent to other processes."""
    from mmad_bank.data.dataset import SampleDataset

    dataset = getattr(read.func, "__self__", None) if isinstance(read, partial) else None
    if not isinstance(dataset, SampleDataset):
        return read
    assert isinstance(read, partial)
    return partial(dataset.select(read.args).__getitem__, 0)


def _model_of_files(model: Path, categories: list[str] | None) -> Path:
    """Return the model that scores files, whose category nothing tells but the user."""
    found = {} if (model / MODEL).is_file() else models_in(model)
    if not found:
        return model  # whoever loads it says what is missing
    names = categories or list(found)
    check_models(model, names, found)
    if len(names) > 1:
        raise InputError(
            f"--categories: expected the category that the files are of, found {'several' if categories else 'none'};"
            f" {model} has models of {', '.join(found)}"
        )
    return found[names[0]]
