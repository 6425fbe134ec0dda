"""What the commands that learn have in common: a method with its arguments, and the samples that it learns from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmad_bank._internal.progress import doing
from mmad_bank._internal.terminal import say
from mmad_bank.cli._output import say_unread
from mmad_bank.cli._pictures import in_words, say_pictures
from mmad_bank.errors import MissingSplitError

if TYPE_CHECKING:
    from mmad_bank.data import RegionOfInterest, SampleDataset
    from mmad_bank.methods import Method
    from mmad_bank.methods.shareable import Shared


@dataclass
class Job:
    """A method, and the data set that it learns from.

    Attributes:
        method: The method's class.
        dataset: Folder of the data set, or several places of plain pictures.
        categories: Categories to take; None takes all.
        layout: Layout of the data set's folders.
        units: Unit of the point clouds' files.
        few_shot: Number of training images to draw, without validation; None takes all.
        seed: Seed of the method and of that draw.
        arguments: Arguments of the method's constructor.
        spelled: What the user has typed of these, by their names; for messages.
        preset: Arguments that --bundled has put in.
        splits: Training and validation samples by category, once they are opened.
        roi: Region of interest of all pictures.
        views: Pattern of the pictures' names, where several show one part.
    """

    method: type[Method]
    dataset: Path | list[Path]
    categories: list[str] | None
    layout: str
    units: str | None
    few_shot: int | None
    seed: int
    arguments: dict[str, Any] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)
    preset: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, tuple[SampleDataset, SampleDataset | None]] = field(default_factory=dict)
    roi: RegionOfInterest | None = None
    views: str | None = None

    @property
    def source(self) -> str:
        """The data in words."""
        return in_words(self.dataset)

    def choose_arguments(self, settings: list[str], bundled: bool, device: str) -> None:
        """Put the constructor's arguments together; what --set says comes last. The constructor checks them."""
        from mmad_bank.cli._arguments import parse_settings
        from mmad_bank.cli._group import spelling

        self.preset = self.method.bundled_arguments() if bundled else {}
        names = self.method.argument_names()
        arguments = self.preset | {n: v for n, v in (("seed", self.seed), ("device", device)) if n in names}
        chosen = parse_settings(self.method, settings)
        self.arguments = {**arguments, **chosen.arguments}
        self.spelled = chosen.spelled
        if self.views is not None:
            self.arguments["views"], self.spelled["views"] = self.views, "--views"
        if {"image_size", "tiles"} & self.spelled.keys() and "image_size" in self.arguments:
            self._take_size(self.arguments["image_size"])
        with spelling(self.spelled):
            self.make()

    def _take_size(self, size: int) -> None:
        """Take images of a size; a preset keeps its number of pixels per patch, unless the user has named a grid.

        With tiles the grid is that of a tile.
        """
        self.arguments["image_size"] = size
        if {"image_size", "grid"} <= self.preset.keys() and "grid" not in self.spelled:
            share = (self.arguments.get("tiles") or size) / self.preset["image_size"]
            self.arguments["grid"] = tuple(max(1, round(side * share)) for side in self.preset["grid"])

    def _take_prepared_size(self, samples: SampleDataset) -> None:
        """Take prepared samples in the size that they have, where another one is a preset's and not the user's word."""
        size = None if samples.preparation is None else samples.preparation.size
        own = self.preset.get("image_size")
        if size is None or own is None or size == own or "image_size" in self.spelled:
            return
        line = f"{self.dataset} was prepared in {size} pixels, which are taken; --bundled would take {own}"
        say(f"note: {line} (mmad-bank prepare --image-size {own})")
        self._take_size(size)

    def make(self) -> Method:
        """Return the method, not fitted."""
        return self.method(**self.arguments)

    def say_idle(self) -> None:
        """Name settings that have no effect with the others; what a preset sets is not the user's word."""
        from mmad_bank.cli._group import as_typed

        for name, why in self.make().idle_arguments().items():
            if name in self.spelled:
                line = f"{self.spelled[name]} has no effect with {as_typed(why, self.spelled)}"
                say(f"warning: {line}")

    def open(self) -> None:
        """Open all splits before the work."""
        from mmad_bank.data import categories_of, few_shot, open_dataset
        from mmad_bank.methods.preparing import refuse_missing
        from mmad_bank.methods.roi import region_of

        method = self.make()
        with doing(f"looking through {self.source}"):
            names = self.categories or categories_of(self.dataset, self.layout)
            for name in names:
                train = open_dataset(self.dataset, name, "train", self.layout, units=self.units, roi=self.roi)
                region_of(train, method)  # says so if the method takes none
                refuse_missing(train, method.modalities, method.name, self.source)
                if name == names[0]:
                    self._take_prepared_size(train)
                if self.few_shot is not None:
                    self.splits[name] = few_shot(train, self.few_shot, self.seed), None
                    continue
                self.splits[name] = train, self._open_validation(name)
            say_unread(self.dataset, names, self.layout)
        say_pictures(self.dataset, [train for train, _ in self.splits.values()], self.layout)

    def train_shared(self, workdir: Path, progress: bool) -> Shared:
        """Train what the opened categories share, unless an earlier run of the same job has left it in a folder."""
        from mmad_bank.cli._group import spelling
        from mmad_bank.methods.shared import train_shared

        with spelling(self.spelled):
            return train_shared(
                self.make(), {name: train for name, (train, _) in self.splits.items()},
                validation={name: validation for name, (_, validation) in self.splits.items()},
                workdir=workdir, progress=progress,
            )  # fmt: skip

    def _open_validation(self, category: str) -> SampleDataset | None:
        """Open the validation split; not every data set has one, but a method that asks for it is fitted otherwise."""
        from mmad_bank.data import open_dataset

        try:
            return open_dataset(
                self.dataset, category, "validation", self.layout, units=self.units, roi=self.roi
            )  # fmt: skip
        except MissingSplitError as error:
            if self.make().needs_validation:
                say(f"note: fitted without validation: {error}")
            return None

    def fingerprint(self) -> dict[str, Any]:
        """Say what the results depend on, as JSON gives it back."""
        from mmad_bank.methods.fingerprint import files_named

        arguments = {name: value for name, value in self.arguments.items() if name != "device"}
        samples = {
            name: [[record.id, record.changed] for split in splits if split for record in split.records]
            for name, splits in self.splits.items()
        }
        content = {"method": self.method.name, "arguments": arguments, "samples": samples, "path": self.source}
        content |= files_named(arguments)
        content |= {"units": self.units} if self.units else {}
        content |= {"roi": self.roi.as_json()} if self.roi is not None else {}
        return json.loads(json.dumps(content))

    def remove_stages(self, workdir: Path) -> None:
        """Remove what the stages of all categories, and of what they share, have left in a folder."""
        from mmad_bank._internal.resume import remove_stages

        for folder in self._folders(workdir):
            remove_stages(folder)

    def remove_unused(self, workdir: Path) -> None:
        """Remove the folders in which stages were to leave results, but have not."""
        from mmad_bank._internal.resume import remove_unused

        for folder in self._folders(workdir):
            remove_unused(folder)

    def _folders(self, workdir: Path) -> list[Path]:
        from mmad_bank.methods.shared import FOLDER

        return [*(workdir / category for category in self.splits), workdir / FOLDER, workdir]
