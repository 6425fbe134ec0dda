"""Labels of images, normal or defective: from a file, or from the folders in the images' names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mmad_bank._internal.terminal import say
from mmad_bank.data.names import GOOD, defect_named
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.bank import Source

_NAMES = "the images' names"
_SHOWN = 3


@dataclass(frozen=True)
class Labels:
    """Labels of images, and where they came from."""

    values: list[int] | None
    """0 for a normal image, 1 for a defective one; None if they are not known."""
    source: str = ""

    @property
    def of_both_kinds(self) -> bool:
        """Whether there are normal images and defective ones, as an AUROC needs."""
        return self.values is not None and len(set(self.values)) == 2

    def of(self, images: Sequence[int]) -> Labels:
        """Return those of some images."""
        return self if self.values is None else Labels([self.values[image] for image in images], self.source)

    def describe(self) -> str:
        """Say where they came from; if there is no I-AUROC, why.

        Example:
            >>> Labels([0, 0, 1], "--labels").describe()
            'labels: from --labels, 2 good, 1 defective'
        """
        if self.values is None:
            return (
                "labels: none, so there is no I-AUROC; give them by --labels or --anomalous, or name the images by"
                " folders, good/000 and hole/001"
            )
        n_defective = sum(self.values)
        words = f"labels: from {self.source}, {len(self.values) - n_defective} good, {n_defective} defective"
        return words if self.of_both_kinds else f"{words}; no I-AUROC, which takes images of both kinds"

    def as_json(self) -> dict[str, Any]:
        """Return the same, JSON-able."""
        if self.values is None:
            return {"from": None, "good": None, "defective": None}
        n_defective = sum(self.values)
        return {"from": self.source, "good": len(self.values) - n_defective, "defective": n_defective}


def labels_of_names(names: Sequence[str]) -> Labels:
    """Read labels off names where that is sure: all lie in folders, and a folder is called good, ok or normal.

    Example:
        >>> labels_of_names(["OK/000", "part/test/hole/001"]).values, labels_of_names(["a/000", "b/000"]).values
        ([0, 1], None)
    """
    folders = [_folder(name) for name in names]
    found = [int(defect_named(folder) != GOOD) for folder in folders]
    return Labels(found, _NAMES) if all(folders) and 0 in found else Labels(None)


def note_defective(names: Sequence[str], before: Sequence[str] = ()) -> str | None:
    """Return a note that images for a bank are called defective; None if their names say nothing of that kind.

    Args:
        names: Names of the images.
        before: Names of those that are in the bank already.

    Example:
        >>> note_defective(["good/000", "hole/001", "hole/002"])
        'note: 2 of 3 images are defective by their names (hole/001, hole/002); a bank is meant for normal ones alone'
    """
    values = labels_of_names([*before, *names]).values
    defective = [] if values is None else [n for n, label in zip(names, values[len(before) :], strict=True) if label]
    if not defective:
        return None
    shown = ", ".join(defective[:_SHOWN]) + (", ..." if len(defective) > _SHOWN else "")
    are = "image is" if len(names) == 1 else f"images {'is' if len(defective) == 1 else 'are'}"
    return (
        f"note: {len(defective)} of {len(names)} {are} defective by {'its name' if len(names) == 1 else 'their names'}"
        f" ({shown}); a bank is meant for normal ones alone"
    )


def say_defective(sources: Sequence[Source], before: Sequence[Source] = ()) -> None:
    """Say on standard error that images for a bank are defective by their names."""
    names, names_before = (
        [source.name(number) for source in group for number in range(source.images)] for group in (sources, before)
    )
    note = note_defective(names, names_before)
    if note is not None:
        say(note)


def labels_of_file(path: Path, n_images: int) -> Labels:
    """Read labels as :func:`read_labels` does, as many as there are images.

    Raises:
        InputError: There are more or fewer, or the file holds something else.
    """
    found = read_labels(path)
    if len(found) != n_images:
        raise InputError(f"--labels: expected a label for each of the {n_images} images of --test, found {len(found)}")
    return Labels(found, f"--labels {path}")


def read_labels(path: Path) -> list[int]:
    """Read labels, 0 for normal and 1 for anomalous: .npy, extraction.json (by its ids), or lines of text.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"--labels: no such file {str(path)!r}")
    try:
        if path.suffix == ".json":
            ids = json.loads(path.read_text(encoding="utf-8"))["ids"]
            if not all(map(_folder, ids)):
                raise ValueError
            return [int(defect_named(_folder(name)) != GOOD) for name in ids]
        if path.suffix == ".npy":
            return _zeros_and_ones(path)
        return [{"0": 0, "1": 1}[word] for word in path.read_text(encoding="utf-8").split()]
    except (KeyError, TypeError, AttributeError, ValueError, UnicodeDecodeError):
        raise InputError(
            f"--labels: expected 0 or 1 for each image in {str(path)!r} (.npy, lines of text) or the ids of"
            " extraction.json, found something else"
        ) from None


def _folder(name: str) -> str:
    """Return the folder that a name lies in; empty if it lies in none."""
    return PurePosixPath(name.replace("\\", "/")).parent.name


def _zeros_and_ones(path: Path) -> list[int]:
    import numpy as np

    values = np.load(path, allow_pickle=False)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise ValueError
    return [int(value) for value in values]
