"""What the rows of the papers' tables run: methods with a row's arguments, its training images and its thresholds.

``--recipe`` and ``--set`` change them, but for what tells a table's rows apart; ``--bundled`` and ``--quick`` take
smaller networks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import published

from mmad_bank.cli._arguments import argument_named, parse_settings
from mmad_bank.cli._group import spelling
from mmad_bank.cli._values import check_device
from mmad_bank.errors import InputError, did_you_mean
from mmad_bank.methods import Method, method_class
from parts.accuracy import few_steps
from parts.inference import Contestant
from parts.runs import Files, Run

SPEED = ("fps", "memory_mb")
"""Metrics that the part inference measures."""
THRESHOLDS: dict[str, int | None] = {"100": 100, "99": 99, "exact": None}
_NETWORKS = ("rgb", "rgb_weights", "rgb_layers", "xyz", "xyz_weights", "num_groups", "group_size")
"""Arguments that say which networks describe pictures and clouds."""
_TINY = {
    "rgb": "vit_tiny_patch16_224", "rgb_weights": "random", "xyz_weights": "random", "num_groups": 32, "group_size": 8,
    "map_size": 28, "queue_size": 500,
}  # fmt: skip
"""What ``--quick`` takes of the methods with transformers."""
_TINY_MDSS = {"image_size": 128, "sdf_width": 16}
_QUICK_SIDE = 112
SET_UP = "mdss"
"""Method of the tables that show settings."""
Arguments = dict[str, Any]


@dataclass
class Plan:
    """A table, and what is run for its rows: by their keys."""

    table: published.Table
    runs: dict[str, Run] = field(default_factory=dict)
    speeds: dict[str, Contestant] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def n_thresholds(self, arguments: argparse.Namespace) -> int | None:
        """Return the number of thresholds that AUPRO samples."""
        return self.table.thresholds if arguments.thresholds is None else THRESHOLDS[arguments.thresholds]

    @property
    def rows(self) -> dict[str, published.Row]:
        """Its rows by key."""
        return {row.key: row for row in self.table.rows}


def plans_of(arguments: argparse.Namespace) -> list[Plan]:
    """Make what the chosen tables' rows run, not fitted; whatever is wrong with it is said before the work.

    Raises:
        InputError: A table, a method, an argument or a file is not there, or a value is out of its range.
    """
    if arguments.few_shot is not None:
        raise InputError("--few-shot: expected none with --table, whose rows say how many images they take")
    files, plans = Files(arguments.weights or []), [Plan(table) for table in chosen_tables(arguments.table)]
    own = _own_arguments(plans, arguments)
    for plan in plans:
        for row in _chosen(plan, arguments):
            _add(plan, row, arguments, own[plan.table.name, row.key], files)
    files.check_used()
    methods = sorted({str(row.method) for plan in plans for row in plan.table.rows if row.runnable})
    if methods and not any(plan.runs for plan in plans):
        found = ", ".join(arguments.methods)
        raise InputError(f"--methods: expected some of the tables' rows ({', '.join(methods)}), found {found}")
    return plans


def chosen_tables(names: str | None) -> list[published.Table]:
    """Return the tables of the papers that ``--table`` names, in its order; all of them if it was not given.

    Raises:
        InputError: There is no table of such a name.
    """
    known = published.tables()
    if names is None:
        return list(known.values())
    chosen = list(dict.fromkeys(word.strip() for word in names.split(",") if word.strip()))
    for name in chosen or [""]:
        if name not in known:
            near = did_you_mean(name, known)
            raise InputError(f"--table: expected some of those that papers --list names, found {name!r}{near}")
    return [known[name] for name in chosen]


def _chosen(plan: Plan, arguments: argparse.Namespace) -> list[published.Row]:
    """Return the rows of a table that are run."""
    wanted = [word.lower() for word in arguments.methods or ()]
    known = {row.method for one in published.tables().values() for row in one.rows if row.method is not None}
    for word in wanted:
        if word not in known:
            expected = ", ".join(sorted(known))
            raise InputError(f"--methods: expected some of {expected} with --table, found {word!r}")
    return [row for row in plan.table.rows if row.runnable and (not wanted or row.method in wanted)]


def _add(plan: Plan, row: published.Row, arguments: argparse.Namespace, given: Arguments, files: Files) -> None:
    """Make the run of a row."""
    assert row.method is not None
    cls, table = method_class(row.method), plan.table
    base = _base(cls, plan, arguments)
    own = {name: value for name, value in row.arguments.items() if name not in base or name not in _networks(arguments)}
    short = {**few_steps(cls), **_fewer_groups(row)} if arguments.quick else {}
    all_of = {**base, **own, **short, **given, "device": str(check_device(arguments.device))}
    with spelling({name: f"--set {name}" for name in given}):
        made = files.make(f"{table.name}, {row.label}", cls, all_of)
    plan.runs[row.key] = Run(f"{table.name} {row.key}", made, row.shots, plan.n_thresholds(arguments))
    if any(name in row.figures for name in SPEED):
        plan.speeds[row.key] = row.method, {**row.arguments, **given}


def _networks(arguments: argparse.Namespace) -> Sequence[str]:
    """Name the arguments that small networks take from the rows."""
    return _NETWORKS if arguments.bundled or arguments.quick else ()


def _base(cls: type[Method], plan: Plan, arguments: argparse.Namespace) -> Arguments:
    """Return the arguments of small networks, if they are asked for; those that make rows differ are left to them."""
    names = cls.argument_names()
    told = {name for row in plan.table.rows if row.method == cls.name for name in row.arguments}
    base: Arguments = {}
    if arguments.bundled or arguments.quick:
        base = {name: value for name, value in cls.bundled_arguments().items() if name not in told - set(_NETWORKS)}
    if not arguments.quick:
        return base
    if arguments.bundled or "xyz" not in names:
        tiny = _TINY_MDSS if cls.name == "mdss" else {"image_size": _QUICK_SIDE}
        return {**base, **tiny}
    base = {name: value for name, value in base.items() if name not in (*_NETWORKS, "grid", "adaptor")}
    # Fewer patches, but for methods whose rows differ in them.
    grid = {} if told & {"grid", "xyz_grid", "rgb_grid", "fusion_grid"} else {"grid": (14, 14)}
    tiny = {name: value for name, value in _TINY.items() if name in names}
    return {**base, **tiny, **grid, "image_size": _QUICK_SIDE}


def _fewer_groups(row: published.Row) -> Arguments:
    """Return a row's point groups for ``--quick``: rows that differ in them still do."""
    shrunk = {"num_groups": 16, "group_size": 8}
    return {name: row.arguments[name] // by for name, by in shrunk.items() if name in row.arguments}


def _own_arguments(plans: Sequence[Plan], arguments: argparse.Namespace) -> dict[tuple[str, str], Arguments]:
    """Read ``--recipe`` and ``--set`` for each row: what makes the rows of a table differ is left to them.

    Raises:
        InputError: No row's method has an argument, no row leaves it open, or its value is of another type.
    """
    words = list(arguments.settings or [])
    if arguments.recipe is not None:
        words = [f"recipe={arguments.recipe}", *words]
    rows = [(plan, row, method_class(str(row.method))) for plan in plans for row in _chosen(plan, arguments)]
    given: dict[tuple[str, str], Arguments] = {(plan.table.name, row.key): {} for plan, row, _ in rows}
    shows_settings = any(plan.table.settings for plan in plans)
    for word in words:
        having = [one for one in rows if argument_named(one[2], word) is not None]
        if not having and shows_settings:
            parse_settings(method_class(SET_UP), [word])
            continue
        if not having:
            _refuse(word, rows)
        taking = [one for one in having if not _differ(one[0], one[2], word)]
        if not taking:
            raise InputError(f"--set {word}: expected an argument in which the rows do not differ")
        for plan, row, cls in taking:
            given[plan.table.name, row.key] |= parse_settings(cls, [word]).arguments
        for plan in {id(one[0]): one[0] for one in having}.values():
            kept = [one[1].label for one in having if one[0] is plan and one not in taking]
            plan.notes += [f"Not for {'; '.join(kept)}, which differ in it: {word}."] if kept else []
    return given


def _refuse(word: str, rows: Sequence[tuple[Plan, published.Row, type[Method]]]) -> None:
    """Say what is wrong with an argument that no row's method has."""
    if rows:
        parse_settings(rows[0][2], [word])
    raise InputError(f"--set {word}: expected tables with rows that are run, found none")


def _differ(plan: Plan, cls: type[Method], word: str) -> bool:
    """Say whether an argument is one that tells the rows of a method in a table apart."""
    name = argument_named(cls, word)
    return len({repr(one.arguments.get(str(name))) for one in plan.table.rows if one.method == cls.name}) > 1
