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
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.manifest import Manifest, parse_json
from mmad_bank._internal.resume import Stages, counted
from mmad_bank._internal.state_dicts import outlines, read_torch
from mmad_bank.errors import FormatError, InputError
from mmad_bank.features.factory import RANDOM, in_words

TRAIN = "train"
"""Value of a part's argument: train it on the samples of the fit."""
NO_FILES = (TRAIN, RANDOM, "none")
"""What a part's argument may say in the place of a file's name."""
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


_SIZES = {
    "xyz_dim": "xyz features of length", "rgb_dim": "rgb features of length", "in_dim": "features of length",
    "out_dim": "predicted ones of length",
}  # fmt: skip
"""Words for sizes of networks; others are called as the argument that sets them."""


class Sized(Protocol):
    """A network whose sizes are known, its own and those of a file of its weights."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Its sizes by name."""

    @staticmethod
    def sizes_in(state: Mapping[str, Tensor]) -> Mapping[str, int] | None:
        """Return the same of a file's tensors; None if they are another network's."""

    def load_checkpoint(self, path: str, /) -> Any:
        """Load a file of weights."""


AnySized = TypeVar("AnySized", bound=Sized)


def check_weight_file(argument: str, source: str) -> None:
    """Refuse a file of weights that is not there, by the argument that names it.

    Raises:
        InputError: It is not.
    """
    if not Path(source).is_file():
        found = "a folder" if source and Path(source).is_dir() else "no such file"
        raise InputError(f"{argument}: expected a file of weights, found {found} ({source or 'the name is empty'})")


def load_part(network: AnySized, argument: str, source: str, features: str = "") -> AnySized:
    """Load a part's weights from a file that an argument names.

    Args:
        network: The part, of the sizes that the model asks for.
        argument: The argument.
        source: The file.
        features: Names of the extractors that the part is used with; empty where it looks at none.

    Returns:
        The network.

    Raises:
        InputError: There is no such file, or it holds such a part of other sizes.
        FormatError: It is no such file.
    """
    check_weight_file(argument, source)
    try:
        network.load_checkpoint(source)
    except FormatError:
        state = read_torch(source, optional=("model", "state_dict"))
        with decoding(source, "altered, its tensors have other shapes than those of any model", error=FormatError):
            found = network.sizes_in(state)
        if found is None or found == network.sizes:
            raise
        trained_on = read_trained_on(source)
        of = f", those of {in_words(features)}" if features else ""
        on = f", trained on those of {in_words(trained_on.features)}" if trained_on and trained_on.features else ""
        raise InputError(
            f"{argument}: expected weights for {sizes_in_words(network.sizes)}{of}; found weights for"
            f" {sizes_in_words(found)}{on} ({source})"
        ) from None
    return network


def sizes_in_words(sizes: Mapping[str, int]) -> str:
    """Return a network's sizes for people.

    Example:
        >>> sizes_in_words({"xyz_dim": 1152, "rgb_dim": 768}), sizes_in_words({"sdf_width": 512})
        ('xyz features of length 1152 and rgb features of length 768', 'sdf_width 512')
    """
    return " and ".join(f"{_SIZES.get(name, name)} {value}" for name, value in sizes.items())


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
            f"{argument}: trained on features of {in_words(found.features)}; found those of {in_words(features)}"
            f" ({source})",
            stacklevel=3,
        )


def read_trained_on(path: str | Path) -> TrainedOn | None:
    """Return what a file says that its network was trained on; None where it does not say, as published ones.

    Raises:
        FormatError: The file is damaged.
    """
    file = Path(path)
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    return trained_on_in(outlines(file)[1], str(path))


def trained_on_in(metadata: Mapping[str, str], place: str) -> TrainedOn | None:
    """Return what the text beside a file's tensors says that they were trained on; None where it does not say.

    Raises:
        FormatError: It is damaged; the message names the place.
    """
    text = metadata.get(_KEY)
    return None if text is None else TrainedOn.from_json(parse_json(text, place), place)
