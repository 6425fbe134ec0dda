"""What the features of banks and mappings are made of: which network's output goes where, in words of the manifest."""

from __future__ import annotations

from typing import Any

from mmad_bank.features import PointPatches
from mmad_bank.features.point_transformer import PointTransformer
from mmad_bank.methods import BTF, CFM, M3DM, MDSS, Method
from mmad_bank.methods.bank_method import BankMethod
from mmad_bank.methods.cfm.mappings import source_of
from mmad_bank.methods.mdss.pdn import FOREGROUND, PDN


def modalities_of(method: Any) -> dict[str, Any]:
    """Say of each modality of a fitted method which network describes it, and how its features lie over the picture.

    Args:
        method: A fitted method.

    Returns:
        JSON-able facts by ``"rgb"`` and ``"xyz"``: ``network`` (a key of ``networks``; None for FPFH, which is no
        network), ``grid`` of the features that come out, their length ``dim``; and of point clouds ``adaptor`` (a key
        of ``networks``, or None) and, where a network takes groups, how these are sampled and brought to the grid. Of
        MDSS what its branches' networks are given, and how their outputs become scores of the ``grid``.
    """
    if isinstance(method, MDSS):
        return _of_branches(method)
    adapts = getattr(method, "adaptation_", None) is not None
    facts: dict[str, Any] = {}
    for name, network in method.extractors_.networks.items():
        own = {"network": "rgb", "grid": list(network.grid)} if name == "rgb" else _of_points(method, network, adapts)
        facts[name] = {**own, "dim": int(network.dim)}
    return facts


def _of_branches(method: MDSS) -> dict[str, Any]:
    """Say of MDSS's branches what their networks take, and how they score what the decision begins with."""
    facts: dict[str, Any] = {}
    if method.student_ is not None:
        facts["rgb"] = {
            "network": "differences", "grid": list(PDN.grid(method.image_size)), "foreground": FOREGROUND,
        }  # fmt: skip
    if method.sdf_ is not None:
        coverage = None if method.coverage is None else method.coverage[1]
        facts["xyz"] = {
            "network": "signed-distance", "grid": [method.image_size] * 2, "aggregation": method.aggregation,
            "patches": {"points": method.patch_size, "coverage": coverage},
        }  # fmt: skip
    return facts


def _of_points(method: Method, network: Any, adapts: bool) -> dict[str, Any]:
    adaptor = "adaptor-xyz" if adapts else None
    transformer = network.network if isinstance(network, PointPatches) else network
    grid = [side_of(method)] * 2 if isinstance(method, CFM) else list(network.grid)
    if not isinstance(transformer, PointTransformer):
        return {"network": None, "grid": grid, "adaptor": adaptor}
    aligned = isinstance(network, PointPatches)
    return {
        "network": "xyz-groups", "grid": grid, "adaptor": adaptor,
        "groups": {
            "number": transformer.num_groups, "points": transformer.group_size,
            "skip_near_origin": transformer.skip_near_origin,
        },
        "interpolation": network.alignment.interpolation if aligned else "three_nearest",
    }  # fmt: skip


def composition_of(method: BankMethod, bank: str) -> list[dict[str, Any]]:
    """Say what a bank's patch features are made of: parts that lie side by side, in this order.

    Returns:
        Of each part its ``modality``; the ``network`` that its rows go through last (a key of ``networks``, or None);
        and ``rows``: what has one, ``"patches"`` or ``"groups"`` of points.
    """
    if isinstance(method, M3DM) and bank == "fusion":
        learnt = method.uff_ is not None
        return [_part(name, f"fusion-{name}" if learnt else None) for name in ("xyz", "rgb")]
    if isinstance(method, BTF):
        return [_part("rgb"), _part("xyz")]
    by_groups = isinstance(method, M3DM) and method.sampling == "groups"
    return [_part(bank, rows="groups" if by_groups else "patches")]


def _part(modality: str, network: str | None = None, rows: str = "patches") -> dict[str, Any]:
    return {"modality": modality, "network": network, "rows": rows}


def comparison_of(method: Method) -> dict[str, Any] | None:
    """Say how CFM compares both modalities; None of other methods.

    Returns:
        ``size``, the pixels along a side of the maps of discrepancies, and for each modality the ``network`` that
        predicts it and the modality that it is predicted ``from``.
    """
    if not isinstance(method, CFM):
        return None
    predicted = {
        name: {"network": f"mapping-{name}", "from": source_of(name, method.mode)} for name in method.mappings_
    }
    return {"size": side_of(method), "predicted": predicted}


def side_of(method: CFM) -> int:
    """Return the pixels along a side of the maps that CFM compares."""
    return method.map_size or method.image_size
