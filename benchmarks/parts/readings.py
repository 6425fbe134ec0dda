"""M3DM under the three readings of its paper, on synthetic data sets: Point-MAE with random weights, bundled RGB.

The recipes differ in Point-MAE's statistics, in the interpolation between its groups, in the banks' grids, and in what
the published code does besides (docs/methods/m3dm.md). Random weights are enough to tell them apart: what a reading
wipes out, no weights bring back.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from common import Table

from parts.accuracy import READINGS, by_category, means, measured


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and evaluate M3DM under every recipe on every category of every seed's data set."""
    del limits
    rows, title = measured(arguments, list(READINGS), "readings")
    title = f"{title}, Point-MAE of random weights"
    table = means(title, rows)
    table.notes.append("The result xyz is that of the point bank alone. The defaults are the reading 'default'.")
    return [table, by_category(title, rows)]
