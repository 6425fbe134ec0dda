"""The contestants of the inference benchmark: methods set up as in their papers, and variants of M3DM and CFM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmad_bank import bench
from mmad_bank.methods import Method, method_class
from mmad_bank.methods.bank_method import BankMethod

Contestant = tuple[str, Mapping[str, Any]]
CONTESTANTS: dict[str, Contestant] = {
    "PatchCore": ("patchcore", {}),
    "BTF": ("btf", {}),
    "M3DM": ("m3dm", {}),
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
}
"""By name: the method and the arguments that differ from its paper's."""


class Contestants:
    """Makes contestants that share what they can: fits, and features of the same extractors.

    Args:
        folder: For what the fits leave: a later run goes on from there.
        known: The contestants: by name, the method and the arguments that differ.
        progress: Show bars on a terminal.
        sizes: ``images`` and the other options of :func:`mmad_bank.bench.new_method`.
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
        method = bench.new_method(kind, settings=changes, **self.sizes)
        images, workdir = self.sizes.get("images", bench.IMAGES), self.folder / name
        if kind == "lsfa" and isinstance(method, BankMethod):  # M3DM has the same extractors
            method.reuse_features(bench.samples_of(images, size=method.image_size), self.folder / "m3dm", workdir)
        return bench.fit_method(method, workdir, images=images, progress=self.progress)
