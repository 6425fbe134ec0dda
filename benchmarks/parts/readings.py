"""M3DM under the three readings of its paper, on synthetic data sets: Point-MAE with random weights, bundled RGB.

The recipes differ in Point-MAE's statistics, in the interpolation between its groups, in the banks' grids, and in what
the published code does besides (docs/methods/m3dm.md). Random weights are enough to tell them apart: what a reading
wipes out, no weights bring back.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from common import Table, precision_for

from parts.accuracy import FEW, READINGS, by_category, means, measured


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and evaluate M3DM under every recipe on every category of every seed's data set."""
    precision = precision_for(arguments.precision, limits)
    shared = {"compute_dtype": precision, "uff_steps": 30}
    rows, title = measured(arguments, list(READINGS), "readings", FEW, shared)
    title = f"{title}, Point-MAE of random weights, {precision}"
    table = means(title, rows)
    table.notes.append(
        f"{FEW['n_train']} training, {FEW['n_validation']} validation and {FEW['n_test']} test images of each."
    )
    table.notes.append("The result xyz is that of the point bank alone. The defaults are the reading 'default'.")
    return [table, by_category(title, rows)]
