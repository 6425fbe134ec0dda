"""Readings of a paper: its sentences, the runs that made its tables, and what of these carries their accuracy.

Papers and the code behind their tables differ, and not all differences are equal. A recipe is a preset of a method's
readings; each of them is an argument of its own, whose value None takes the recipe's.

- ``"default"`` does what the published figures rest on, without what is plainly an accident.
- ``"published"`` does the accidents too, as the authors' code did when it made the tables.
- ``"paper"`` takes the sentences literally.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, get_args

Recipe = Literal["default", "published", "paper"]
Presets = Mapping[str, Mapping[str, Any]]
"""Values of readings by recipe and by argument."""

POINTS: Presets = {
    "default": {"batch_norm": "batch", "skip_near_origin": False, "group_size": 128, "interpolation": "three_nearest"},
    "published": {"batch_norm": "batch", "skip_near_origin": True, "group_size": 128, "interpolation": "three_nearest"},
    "paper": {"batch_norm": "running", "skip_near_origin": False, "group_size": 128, "interpolation": "all_centers"},
}
"""Readings of Point-MAE and of its alignment (PFA).

On clouds in metres a group's coordinates, relative to its center, average .004, where they averaged .19 when Point-MAE
was trained: with the running statistics all groups look alike. And 1/d over all 1024 centers smears a patch over
hundreds of groups, where the three nearest carry nearly all of 1/d².
"""


_OF_FEATURES = ("batch_norm", "interpolation", "group_size")
"""Readings that features depend on. Passing over points near the origin is none: a sensor's objects lie farther off."""


class Read(Protocol):
    """A method with readings."""

    readings: ClassVar[Presets]

    def reading(self, name: str) -> Any:
        """Return the value of a reading."""


def warn_of_other_reading(method: Read, argument: str, file: str) -> None:
    """Warn that published weights were trained on features of another reading than the method's, if they were.

    Args:
        method: Method that has loaded the weights.
        argument: Argument that took them.
        file: File that they are from; those of this package (``.safetensors``) are no published ones.
    """
    published = method.readings["published"]
    if Path(file).suffix == ".safetensors" or getattr(method, "xyz", None) == "fpfh":
        return
    known = [name for name in _OF_FEATURES if name in published and hasattr(method, name)]
    other = [name for name in known if method.reading(name) != published[name]]
    if other:
        wanted, found = (
            ", ".join(f"{name}={value}" for name, value in zip(other, values, strict=True))
            for values in (map(published.get, other), map(method.reading, other))
        )
        warnings.warn(
            f"{argument}: the authors trained published weights on features with {wanted}, as recipe=published has"
            f" them; found {found} ({file})",
            stacklevel=3,
        )


def presets(*groups: Presets) -> Presets:
    """Put groups of readings together; those of a later group win.

    Example:
        >>> presets(POINTS, {"paper": {"group_size": 32}})["paper"]["group_size"]
        32
    """
    return MappingProxyType(
        {recipe: {name: value for one in groups for name, value in one.get(recipe, {}).items()}
         for recipe in get_args(Recipe)}
    )  # fmt: skip
