"""Parts of a method that one training can make for several categories, and what is known of such a training.

A method declares them (:attr:`mmad_bank.methods.Method.shareable`), and learns them from the training data of one or
of several categories (:meth:`~mmad_bank.methods.Method.learn_parts`); :mod:`mmad_bank.methods.shared` does the rest.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.manifest import Manifest, parse_json
from mmad_bank._internal.resume import Stages, counted
from mmad_bank.errors import FormatError

TRAIN = "train"
"""Value of a part's argument: train it on the samples of the fit."""
_KEY = "mmad_bank_trained_on"  # in the header of a safetensors file


class SharedPart(NamedTuple):
    """A part of a method that one training can make for several categories.

    Attributes:
        name: Its name, in files and in a model's manifest: ``"uff"``.
        argument: Constructor argument that says where it comes from: :data:`TRAIN`, or a file of it.
        attribute: Attribute that holds the network once it is learnt.
        words: What people call it.
    """

    name: str
    argument: str
    attribute: str
    words: str


class CategoryData(NamedTuple):
    """What a method trains on, of one category.

    Attributes:
        category: The category.
        data: What the method makes of the samples first, such as their features in files.
        stages: Stages of that category's fit, for what is made of the data on the way.
        images: Number of samples in it.
    """

    category: str
    data: Any
    stages: Stages
    images: int


@dataclass(frozen=True)
class Shared:
    """Parts that one training has made for several categories, see :func:`mmad_bank.methods.shared.train_shared`.

    Attributes:
        files: Their files, by the constructor arguments that take them.
        identity: What tells this training from others; known before it.
        skipped: Reasons why samples, or all of a category, took no part in it.
    """

    files: Mapping[str, str]
    identity: str
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedOn:
    """What a part was trained on.

    Attributes:
        images: Number of images.
        categories: Their categories, sorted; empty where they named none.
        features: Names of the extractors whose features it was trained on; empty where it looks at none.

    Example:
        >>> TrainedOn(40, ("bagel", "rope")).in_words()
        '40 images of bagel, rope'
    """

    images: int
    categories: tuple[str, ...]
    features: str = ""

    @classmethod
    def of(cls, members: Sequence[CategoryData], features: str = "") -> TrainedOn:
        """Sum up categories' data."""
        categories = sorted({one.category for one in members} - {""})
        return cls(sum(one.images for one in members), tuple(categories), features)

    @classmethod
    def from_json(cls, content: Any, place: str) -> TrainedOn:
        """Read what :meth:`as_json` gave.

        Raises:
            FormatError: It is something else; the message names the place.
        """
        found = Manifest(place, content)
        features = found.text("features") if "features" in found.content else ""
        return cls(found.integer("images"), tuple(found.texts("categories")), features)

    def as_json(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        own = {"images": self.images, "categories": list(self.categories)}
        return {**own, "features": self.features} if self.features else own

    def in_words(self) -> str:
        """Return it for people."""
        of = f" of {', '.join(self.categories)}" if self.categories else ""
        return counted(self.images, "image") + of

    def as_metadata(self) -> dict[str, str]:
        """Return it for the header of a safetensors file."""
        return {_KEY: json.dumps(self.as_json())}


def warn_of_other_features(argument: str, source: str, features: str) -> None:
    """Warn that a part of a file was trained on other features than those that it is used on, if the file says so.

    Args:
        argument: Argument that took it.
        source: File of the part, or another value of the argument.
        features: Names of the extractors that it is used with.
    """
    found = read_trained_on(source)
    if found is not None and found.features not in ("", features):
        warnings.warn(
            f"{argument}: trained on features of {found.features}; found those of {features} ({source})", stacklevel=3
        )


def read_trained_on(path: str | Path) -> TrainedOn | None:
    """Return what a file says that its network was trained on; None where it does not say, as published ones.

    Raises:
        FormatError: The file is damaged.
    """
    file = Path(path)
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    from safetensors import safe_open

    with (
        decoding(file, "not a safetensors file, or a truncated one", error=FormatError),
        safe_open(file, "pt") as opened,
    ):
        text = (opened.metadata() or {}).get(_KEY)
    return None if text is None else TrainedOn.from_json(parse_json(text, str(path)), str(path))
