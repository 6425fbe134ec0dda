"""The contestants of the inference benchmark: methods set up as in their papers, and variants of M3DM and CFM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmad_bank import bench
from mmad_bank.methods import Method, method_class

Contestant = tuple[str, Mapping[str, Any]]
SMALL = "M3DM, small (28×28)"
VECTORS = {SMALL: bench.SMALL_VECTORS}
"""Number of vectors in each bank, of contestants whose banks have not their paper's sizes."""
CONTESTANTS: dict[str, Contestant] = {
    "PatchCore": ("patchcore", {}),
    "BTF": ("btf", {}),
    "M3DM": ("m3dm", {}),
    SMALL: ("m3dm", {"grid": (28, 28)}),
    "M3DM, 8-bit banks": ("m3dm", {"bank_precision": "int8"}),
    "M3DM, RGB bank": ("m3dm", {"banks": ("rgb",)}),
    "M3DM, point bank": ("m3dm", {"banks": ("xyz",)}),
    "M3DM, fusion bank": ("m3dm", {"banks": ("fusion",)}),
    "M3DM, two banks": ("m3dm", {"banks": ("xyz", "rgb"), "decision": "add"}),
    "LSFA": ("lsfa", {}),
    "CFM": ("cfm", {}),
    "CFM-M": ("cfm", {"variant": "M"}),
    "CFM-S": ("cfm", {"variant": "S"}),
    "CFM-T": ("cfm", {"variant": "T"}),
    "MDSS": ("mdss", {}),
    "ShapeGuided": ("shape_guided", {}),
    "AST": ("ast", {}),
}
"""By name: the method and the arguments that differ from its paper's."""


class Contestants:
    """Makes contestants; variants of one fit share it.

    Args:
        folder: For the banks: a later run takes them from there.
        known: The contestants: by name, the method and the arguments that differ.
        progress: Show bars on a terminal.
        sizes: ``images``, ``vectors`` and the options of :func:`mmad_bank.bench.new_method`.
    """

    def __init__(
        self, folder: Path, known: Mapping[str, Contestant] = CONTESTANTS, *, progress: bool = False, **sizes: Any
    ) -> None:
        self.folder, self.known, self.progress, self.sizes = folder, known, progress, sizes
        self._fitted: dict[str, Method] = {}

    def make(self, name: str) -> Method:
        """Return a fitted contestant."""
        kind, changes = self.known[name]
        if not changes.keys() <= method_class(kind).prediction_arguments:
            return self._fit(kind, name, changes)
        fitted = self._fitted.get(kind)
        if fitted is None:
            fitted = self._fitted[kind] = self._fit(kind, kind, {})
        return fitted.with_arguments(**changes) if changes else fitted

    def _fit(self, kind: str, name: str, changes: Mapping[str, Any]) -> Method:
        sizes = {"vectors": self._vectors(name), **self.sizes}
        return bench.make_method(
            kind, self.folder / name.replace(" ", "-"), settings=changes, progress=self.progress, **sizes
        )

    def _vectors(self, name: str) -> int | None:
        """Return the vectors in each bank: those of the paper (None), or as many of them as there are images of."""
        images = self.sizes.get("images", bench.IMAGES)
        return VECTORS[name] * images // bench.IMAGES if name in VECTORS else None
