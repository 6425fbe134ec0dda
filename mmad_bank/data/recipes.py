"""Preparations by name: what the papers do to a sensor's data before anything is extracted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mmad_bank._internal.units import check_units
from mmad_bank.errors import InputError, did_you_mean

PADS = ("zero", "edge", "reflect")
"""Ways to pad a colour image to a square."""


class OtherPreparation(InputError):
    """A sample was prepared otherwise than those that it comes together with."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a sample; every length in metres unless it says pixels.

    Attributes:
        size: Side of the result in pixels; None keeps the padded size.
        background: ``"plane"`` (fit and remove), ``"belt"`` (Eyecandies' frame and limits) or ``"keep"``.
        zero_rgb: Whether the colour image is black where the background was removed.
        pad: ``"zero"``, ``"edge"`` (the outermost pixel repeated) or ``"reflect"`` (the picture mirrored about it):
            values that pad colour image and mask to a square; the cloud's padding is always zero, unmeasured.
        pad_multiple: Number of pixels of which the square's side is a multiple.
        frame: Width of the image's border that the plane is fitted to, in pixels.
        inlier_distance: Largest distance of a RANSAC inlier from the plane.
        n_sample: Number of points per RANSAC hypothesis.
        n_hypotheses: Number of RANSAC hypotheses.
        removal_distance: Distance from the plane below which points are background.
        eps: DBSCAN's radius; None keeps all clusters.
        min_points: Number of points in the neighbourhood of a core point of DBSCAN.
        seed: Seed of RANSAC.
        units: Unit of the raw clouds, see :data:`mmad_bank.data.UNITS`; None for metres, which is checked. It does
            not tell prepared data apart: those are in metres.

    Example:
        >>> Preprocessing.recipe("mdss").size
        256
    """

    size: int | None = 224
    background: str = "plane"
    zero_rgb: bool = True
    pad: str = "zero"
    pad_multiple: int = 100
    frame: int = 10
    inlier_distance: float = 0.004
    n_sample: int = 50
    n_hypotheses: int = 1000
    removal_distance: float = 0.005
    eps: float | None = 0.006
    min_points: int = 30
    seed: int = 0
    units: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name, allowed in (("background", ("plane", "belt", "keep")), ("pad", PADS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}")
        for name in ("pad_multiple", "frame", "n_sample", "n_hypotheses", "min_points"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, found {getattr(self, name)}")
        check_units(self.units)
        if self.size is not None and self.size < 1:
            raise InputError(f"size: expected at least 1 pixel, found {self.size}")

    @classmethod
    def recipe(cls, name: str = "m3dm", **changes: Any) -> Preprocessing:
        """Return the settings of a paper's method, with changes.

        Args:
            name: ``"m3dm"`` (also BTF, LSFA), ``"cfm"`` (also AST; keeps the colour background, pads with edges),
                ``"mdss"`` (256 pixels), ``"eyecandies"`` (belt instead of plane, colour background kept, all clusters,
                no padding), or ``"keep"`` (padded only as far as it is not square, and resized).
            changes: Attributes that differ.

        Raises:
            InputError: There is no such recipe, or a value is out of range.
        """
        if name not in _RECIPES:
            near = did_you_mean(name, _RECIPES)
            raise InputError(f"recipe: expected one of {', '.join(_RECIPES)}, found {name!r}{near}")
        return replace(_RECIPES[name], **changes)

    def as_json(self) -> dict[str, Any]:
        """Return all settings for a JSON file; the unit where it is given."""
        return {name: value for name, value in asdict(self).items() if name != "units" or value is not None}

    def differences(self, other: Preprocessing) -> list[str]:
        """Say what another preparation does otherwise; settings that neither of them uses do not count.

        Example:
            >>> Preprocessing.recipe("keep").differences(Preprocessing.recipe("keep", frame=3, pad="edge"))
            ['pad: zero against edge']
        """
        idle = {"units"}
        if "plane" not in (self.background, other.background):
            idle |= {"frame", "inlier_distance", "n_sample", "n_hypotheses", "removal_distance", "seed"}
        if self.eps is None and other.eps is None:
            idle.add("min_points")
        mine, others = self.as_json(), other.as_json()
        return [
            f"{name}: {value} against {others[name]}"
            for name, value in mine.items()
            if name not in idle and value != others[name]
        ]


_RECIPES = {
    "m3dm": Preprocessing(),
    "cfm": Preprocessing(zero_rgb=False, pad="edge"),
    "mdss": Preprocessing(size=256),
    # Padding to multiples of 100 is a step for MVTec 3D-AD alone: it would put Eyecandies' 512×512 pixels into 600×600.
    "eyecandies": Preprocessing(background="belt", zero_rgb=False, eps=None, pad_multiple=1),
    "keep": Preprocessing(background="keep", zero_rgb=False, eps=None, pad_multiple=1),
}
RECIPES = tuple(_RECIPES)
