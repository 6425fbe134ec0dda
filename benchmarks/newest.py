"""Which of many result files count: reading them, and telling the newest from those that they replace.

A result is replaced by another of the same benchmark and part on the same machine if that one has all of its methods
and is newer, over as many data sets and images, or is over more of them. Results of other synthetic data sets, which
settings were chosen on, stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import figures
from common import SCHEMA

Result = Mapping[str, Any]

BENCHMARKS = ("methods", "engine", "distributed", "gpu")
AMOUNTS = {"accuracy": ("seeds", "categories"), "inference": ("images",)}
"""Settings of a part that say over how much it was measured."""
GRID_OF_BUNDLED = ("networks", "stages", "sizes", "grids", "pads", "rules", "turns")
"""Axes of the part bundled: a result stays until a newer one has all of its points."""
DATA_OF_BUNDLED = ("data", "only", "few_shot", "seeds")
"""Settings of that part that say of what it is."""
_FORMER_WORDS = {
    "M3DM, fused bank": "M3DM, fusion bank",
    "seeds' means. 'fused' is the method's own result;": "seeds' means. 'result' is the method's own;",
    "embedded extractors": "bundled extractors",
    "ours of the embedded ones": "ours of the bundled ones",
    "vectors a bank": "vectors per bank",
    "19,129 vectors per bank": "28×28 patches, 19,129 vectors per bank",
    "one image each a round": "one image of each per round",
    "decision and map, of the whole image's time.": "decision and map, as a share of the whole time.",
    "Medians a stage.": "Medians per stage.",
    "fps: an image of 784 patches at a time": "fps: one image of 784 patches at a time",
    "neighbours": "neighbors",
    "ms a pick": "ms per pick",
    "images a second": "images per second",
    "frames a second": "frames per second",
}


def read(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        ValueError: It is no result, of another schema, or of a --quick run, whose times mean nothing.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schema, quick = values["schema"], values["settings"]["quick"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result file of these benchmarks") from error
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, found {schema}")
    if quick:
        raise ValueError(f"{path}: a --quick run; expected one of full size")
    return _renamed(values)


def _renamed(values: Any) -> Any:
    """Put today's words in the place of those that older result files have."""
    if isinstance(values, dict):
        return {key: _renamed(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_renamed(value) for value in values]
    if isinstance(values, str):
        for former, word in _FORMER_WORDS.items():
            values = values.replace(former, word)
    return values


def newest(results: Iterable[dict[str, Any]], *, anywhere: bool = False) -> list[dict[str, Any]]:
    """Keep of every part and benchmark the newest result of each machine, or of all machines.

    Returns:
        In the order of benchmarks, machines and dates.
    """
    return _chosen(results, replaced=False, anywhere=anywhere)


def replaced(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of every part and benchmark what :func:`newest` leaves out, in the same order."""
    return _chosen(results, replaced=True, anywhere=False)


def _chosen(results: Iterable[dict[str, Any]], *, replaced: bool, anywhere: bool) -> list[dict[str, Any]]:
    ordered = sorted(results, key=lambda v: (BENCHMARKS.index(v["benchmark"]), figures.place(v), v["date"]))
    chosen = []
    for values in ordered:
        parts = {
            part: tables
            for part, tables in values["parts"].items()
            if replaced == any(_replaces(other, values, part, anywhere) for other in ordered)
        }
        if parts:
            chosen.append(values | {"parts": parts})
    return chosen


def _replaces(other: Result, own: Result, part: str, anywhere: bool) -> bool:
    """Tell whether another result has a part of this one, all of its methods, and as many data sets or more."""
    if part not in other["parts"] or not _of_the_same(other, own, anywhere):
        return False
    if part == "bundled" and not _covers(other["settings"], own["settings"]):
        return False
    methods, others = (values.get("settings", {}).get("methods") for values in (own, other))
    if others is not None and (methods is None or not set(methods) <= set(others)):
        return False
    much, others_much = amounts(own, part), amounts(other, part)
    if any(a < b for a, b in zip(others_much, much, strict=True)):
        return False
    return others_much != much or other["date"] > own["date"]


def _of_the_same(other: Result, own: Result, anywhere: bool) -> bool:
    """Tell whether results are of one benchmark, of synthetic data sets that begin alike, and of one machine."""
    if other["benchmark"] != own["benchmark"] or amount(other, "first_seed") != amount(own, "first_seed"):
        return False
    return anywhere or figures.place(other) == figures.place(own)


def _covers(other: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Tell whether a run of the part bundled has all points of another one's grid, on the same data."""
    if any(other.get(name) != own.get(name) for name in DATA_OF_BUNDLED):
        return False
    return all(set(own.get(name) or [None]) <= set(other.get(name) or [None]) for name in GRID_OF_BUNDLED)


def amounts(values: Result, part: str) -> list[int]:
    """Return over how many data sets or images a part was measured; nothing for parts that have one size."""
    return [amount(values, name) for name in AMOUNTS.get(part, ())]


def amount(values: Result, name: str) -> int:
    """Return a setting that counts; 0 if the result has none."""
    return int(values.get("settings", {}).get(name) or 0)


def of_most_data(results: Sequence[Result]) -> list[Result]:
    """Leave out methods' accuracy that another result has over more data sets, and inference with fewer images."""
    most: dict[str, int] = {}
    for values in results:
        for table in values["parts"].get("accuracy", ()):
            for row in table["rows"]:
                most[row["method"]] = max(most.get(row["method"], 0), amount(values, "seeds"))
    images = max((amount(values, "images") for values in results if "inference" in values["parts"]), default=0)

    def kept(values: Result, part: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
        if part == "inference" and amount(values, "images") < images:
            return {**table, "rows": []}
        if part != "accuracy":
            return table
        return {**table, "rows": [row for row in table["rows"] if most[row["method"]] == amount(values, "seeds")]}

    return [
        {**values, "parts": {
            part: [kept(values, part, table) for table in tables] for part, tables in values["parts"].items()
        }}
        for values in results
    ]  # fmt: skip
