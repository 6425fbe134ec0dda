"""Units of point clouds: everything is computed in metres, and what does not look like metres is said.

Recipes, FPFH's radii and the published methods have lengths in metres in them. Sensors write millimetres as well, and
no file says which. So the unit is named by the user, or the cloud is taken to be in metres, and looked at.
"""

from __future__ import annotations

import numpy as np

from mmad_bank.errors import InputError

UNITS = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6}
"""Units and their length in metres."""
_WORDS = {"m": "metres", "cm": "centimetres", "mm": "millimetres", "um": "micrometres"}
# Parts on an inspection line with what lies around them are smaller than this; the same in centimetres is mostly not.
_MOST_METRES, _LEAST_METRES = 10.0, 0.002
_MOST_POINTS = 20_000


def check_units(units: str | None, name: str = "units") -> str | None:
    """Return the unit, or say which there are.

    Raises:
        InputError: There is no such unit.
    """
    if units is not None and units not in UNITS:
        raise InputError(f"{name}: expected one of {', '.join(UNITS)}, found {units!r}")
    return units


def spans(xyz: np.ndarray) -> np.ndarray:
    """Measure how far a cloud reaches along each axis, without the outermost hundredths, where strays are.

    Args:
        xyz: (..., 3), zeros where nothing was measured.

    Returns:
        (3,) float64, in the cloud's unit; zeros for a cloud without points.
    """
    points = xyz.reshape(-1, 3)
    points = points[(points != 0).all(axis=1)]
    if not len(points):
        return np.zeros(3)
    low, high = np.quantile(points[:: -(-len(points) // _MOST_POINTS)].astype(np.float64), (0.01, 0.99), axis=0)
    return np.asarray(high - low)


def describe(xyz: np.ndarray) -> str:
    """Say how far a cloud reaches along each axis, and of what unit that looks if not of metres.

    Example:
        >>> describe(np.mgrid[:181, :181, 10:11].T.reshape(-1, 3) + 1.0)
        'the cloud spans 178 × 178 × 0, which looks like millimetres; expected metres: name the unit (--units mm)'
    """
    reach = spans(xyz)
    found = f"the cloud spans {' × '.join(f'{length:.3g}' for length in reach)}"
    unit = looks_like(reach)
    if unit is None:
        return f"{found} m" + (", which is little for metres" if reach.max() < _LEAST_METRES else "")
    return f"{found}, which looks like {_WORDS[unit]}; expected metres: name the unit (--units {unit})"


def looks_like(reach: np.ndarray) -> str | None:
    """Return the unit that a cloud's spans look like if they are too large for metres; None if they may be metres."""
    largest = float(reach.max())
    if largest <= _MOST_METRES:
        return None
    return "mm" if largest * UNITS["mm"] <= _MOST_METRES else "um"
