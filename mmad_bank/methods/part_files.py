"""What a file of a shared part is: told by its tensors' names and shapes, no network is made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.state_dicts import outlines
from mmad_bank.adaptation.adaptor import FeatureAdaptation, kind_in
from mmad_bank.errors import FormatError
from mmad_bank.fusion import FeatureFusion
from mmad_bank.methods.base import Method
from mmad_bank.methods.lsfa import ADAPTATION, LSFA
from mmad_bank.methods.m3dm.method import M3DM, UFF
from mmad_bank.methods.mdss.method import MDSS
from mmad_bank.methods.mdss.signed_distance import SignedDistance
from mmad_bank.methods.shareable import SharedPart, TrainedOn, trained_on_in
from mmad_bank.methods.signed_distance_method import SDF


@dataclass(frozen=True)
class PartFile:
    """A file of a shared part.

    Attributes:
        part: The part.
        method: The method that trains it.
        sizes: Sizes of the network, by name.
        kind: Kind of adaptors; empty for other parts.
        n_values: Number of values in the file.
        trained_on: What it was trained on; None where the file does not say.
    """

    part: SharedPart
    method: type[Method]
    sizes: Mapping[str, int]
    kind: str
    n_values: int
    trained_on: TrainedOn | None


def read_part_file(path: str | os.PathLike[str]) -> PartFile | None:
    """Say what a file of a shared part holds, by its header.

    Returns:
        None if the file is none of those, or truncated.

    Raises:
        FormatError: It is altered.
    """
    try:
        state, metadata = outlines(path)
    except FormatError:
        return None
    known = ((UFF, M3DM, FeatureFusion.sizes_in), (ADAPTATION, LSFA, FeatureAdaptation.sizes_in),
             (SDF, MDSS, SignedDistance.sizes_in))  # fmt: skip
    for part, method, sizes_in in known:
        with decoding(path, "altered, its tensors have shapes that no model writes", error=FormatError):
            sizes = sizes_in(state)
        if sizes is not None:
            kind = kind_in(state) if part is ADAPTATION else ""
            n_values = sum(tensor.numel() for tensor in state.values())
            return PartFile(part, method, sizes, kind, n_values, trained_on_in(metadata, str(path)))
    return None
