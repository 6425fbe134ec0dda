"""Turn result files into Markdown and figures: all into docs/benchmarks.md, main figure and headlines into README.md.

    python benchmarks/report.py benchmarks/results/*.json

Nothing in either is typed by hand, nothing is measured here. Of several results of one part on one machine the newest
counts; of one that measured some of the methods, the newest of these; one over fewer data sets or images replaces none
over more. README shows of every part the newest result of all machines.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures
from common import ROOT, SCHEMA, Column, Table, drift_table, machine_table, versions_table
from figures import Drawn

from mmad_bank._internal.files import replacing
from mmad_bank.errors import MmadBankError
from mmad_bank.evaluation import FUSED

MARKERS = re.compile(r"(<!-- benchmarks: ?(?:begin|start) -->\n).*?(<!-- benchmarks: ?end -->)", re.DOTALL)


def main() -> None:
    """Read the result files, draw the figures and write both documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    arguments = parser.parse_args()
    try:
        results = newest(read(path) for path in arguments.results)
        before = arguments.readme.read_text(encoding="utf-8")
        with_section(before, "")  # fails before anything is written
        drawn = figures.draw(results, arguments.docs.parent / "figures")
    except (OSError, ValueError, MmadBankError) as error:
        sys.exit(f"error: {error}")
    for figure in drawn:
        print(f"written: {figure.path}")
    write(arguments.docs, full(results, drawn, arguments.docs.parent))
    write(arguments.readme, with_section(before, summary(results, drawn, arguments.readme.parent)))


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
        raise ValueError(f"{path}: of a --quick run; expected one of full size")
    return _renamed(values)


_FORMER_WORDS = {
    "M3DM, fused bank": "M3DM, fusion bank",
    "seeds' means. 'fused' is the method's own result;": "seeds' means. 'result' is the method's own;",
}


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


_ORDER = ("methods", "engine", "gpu")
_AMOUNTS = {"accuracy": ("seeds", "categories"), "inference": ("images",)}
"""Settings of a part of which a result with less does not replace one with more."""
_IN_README = ("inference", "accuracy", "papers", "selection", "search")
"""Parts of which README shows the headline tables; of the GPU's benchmark it shows all."""


def newest(results: Iterable[dict[str, Any]], *, anywhere: bool = False) -> list[dict[str, Any]]:
    """Keep of every part and benchmark the newest result of each machine, or of all machines.

    Returns:
        In the order of benchmarks, machines and dates.
    """
    ordered = sorted(results, key=lambda v: (_ORDER.index(v["benchmark"]), figures.place(v), v["date"]))
    kept = []
    for values in ordered:
        parts = {
            part: tables
            for part, tables in values["parts"].items()
            if not any(_replaces(other, values, part, anywhere) for other in ordered)
        }
        if parts:
            kept.append(values | {"parts": parts})
    return kept


def _replaces(later: Mapping[str, Any], earlier: Mapping[str, Any], part: str, anywhere: bool) -> bool:
    """Tell whether a later result has a part of an earlier one, with all of its methods and data sets."""
    if later["date"] <= earlier["date"] or part not in later["parts"] or later["benchmark"] != earlier["benchmark"]:
        return False
    if not anywhere and figures.place(later) != figures.place(earlier):
        return False
    own, others = (values.get("settings", {}) for values in (earlier, later))
    fewer = any(others.get(name, 0) < own.get(name, 0) for name in _AMOUNTS.get(part, ()))
    named, others_named = own.get("methods"), others.get("methods")
    return not fewer and (others_named is None or (named is not None and set(named) <= set(others_named)))


def full(results: Sequence[Mapping[str, Any]], drawn: Sequence[Drawn] = (), folder: Path = ROOT / "docs") -> str:
    """Return the document with all tables and the figures that were drawn, linked from ``folder``."""
    blocks = [
        "# Benchmarks",
        "`python benchmarks/report.py benchmarks/results/*.json` writes this page, its figures and README's section"
        " from the result files; do not edit by hand. Every section names the command that measures its numbers again.",
    ]
    for values in results:
        blocks += [f"## {values['benchmark']}, {', '.join(values['parts'])}: {_machine(values)}", _settings(values)]
        blocks.append(f"Measure again: `{command(values)}`")
        for part, tables in values["parts"].items():
            blocks += [_picture(one, folder) for one in drawn if one.owner == figures.owner(values, part)]
            for table in tables:
                blocks += _markdown(Table.from_json(table), level=3)
        blocks += _surroundings(values)
    return "\n\n".join(blocks) + "\n"


def command(values: Mapping[str, Any]) -> str:
    """Return the command that measures a result again."""
    words = ["python", f"benchmarks/{values['benchmark']}.py", *values["parts"]]
    for name, value in values["settings"].items():
        if name in ("quick", "parts") or value is None or value is False:
            continue
        given = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, given)]
    if values["benchmark"] != "gpu":
        words += ["--threads", str(values["machine"]["threads"])]
    return shlex.join([*words, "--json", "benchmarks/results"])


def _surroundings(values: Mapping[str, Any]) -> list[str]:
    """Return machine, versions and drift, folded up."""
    tables = [machine_table(values["machine"], values["ceilings"]), versions_table(values["versions"])]
    if "ceilings_after" in values:
        tables.append(drift_table(values))
    blocks = [block for table in tables for block in _markdown(table, level=3)]
    return ["<details><summary>Machine and versions</summary>", *blocks, "</details>"]


def _picture(drawn: Drawn, folder: Path) -> str:
    return f"![{drawn.alt}]({Path(os.path.relpath(drawn.path, folder)).as_posix()})"


def summary(results: Sequence[Mapping[str, Any]], drawn: Sequence[Drawn] = (), folder: Path = ROOT) -> str:
    """Return the main figures and the headline tables, without their details and notes."""
    shown = _of_most_data(newest(results, anywhere=True))
    owners = {figures.owner(values, part) for values in shown for part in values["parts"]}
    blocks = [_picture(one, folder) for one in drawn if one.main and one.owner in owners]
    for machine, own in _by_machine(shown).items():
        headlines = _joined(found for values in own for found in _headlines(values))
        if any(table.rows for table, _ in headlines):
            blocks.append(f"**{machine}.** {_dates(own)} {_peers(own)}")
        for table, program in headlines:
            columns = [column for column in table.columns if not column.detail and column.key != "result"]
            rows = [row for row in table.rows if row.get("result", FUSED) == FUSED]
            rows = [row for row in rows if any(row.get(column.key) is not None for column in columns[1:])]
            if rows:
                blocks.append(f"*{table.title}* (`{program}`)\n\n{_grid(columns, rows)}")
    blocks.append(
        "× X: how many times longer than X a row took, the median of the ratios within each round. All tables, figures"
        " and commands are in [docs/benchmarks.md](docs/benchmarks.md), what is measured and how in"
        " [benchmarks](benchmarks/README.md)."
    )
    return "\n\n".join(blocks)


def _of_most_data(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out methods' accuracy that another result has over more data sets, and inference with fewer images."""
    most: dict[str, int] = {}
    for values in results:
        for table in values["parts"].get("accuracy", ()):
            for row in table["rows"]:
                most[row["method"]] = max(most.get(row["method"], 0), _amount(values, "seeds"))
    images = max((_amount(values, "images") for values in results if "inference" in values["parts"]), default=0)

    def kept(values: Mapping[str, Any], part: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
        if part == "inference" and _amount(values, "images") < images:
            return {**table, "rows": []}
        if part != "accuracy":
            return table
        return {**table, "rows": [row for row in table["rows"] if most[row["method"]] == _amount(values, "seeds")]}

    return [
        {**values, "parts": {
            part: [kept(values, part, table) for table in tables] for part, tables in values["parts"].items()
        }}
        for values in results
    ]  # fmt: skip


def _amount(values: Mapping[str, Any], name: str) -> int:
    return int(values["settings"].get(name) or 0)


def _joined(headlines: Iterable[tuple[Table, str]]) -> list[tuple[Table, str]]:
    """Put tables of one title under each other: runs of one part with different contestants."""
    joined: dict[str, tuple[Table, str]] = {}
    for table, program in headlines:
        if table.title in joined:
            joined[table.title][0].rows.extend(table.rows)
        else:
            joined[table.title] = replace(table, rows=list(table.rows)), program
    return list(joined.values())


def _headlines(values: Mapping[str, Any]) -> list[tuple[Table, str]]:
    """Return the tables that README shows, each with the program that makes it."""
    tables = [(part, Table.from_json(table)) for part, found in values["parts"].items() for table in found]
    return [
        (table, f"benchmarks/{values['benchmark']}.py {part}")
        for part, table in tables
        if table.headline and (part in _IN_README or values["benchmark"] == "gpu")
    ]


def _by_machine(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for values in results:
        found.setdefault(_machine(values), []).append(values)
    return found


def _dates(results: Sequence[Mapping[str, Any]]) -> str:
    days = sorted({values["date"][:10] for values in results})
    versions = sorted({values["versions"]["mmad-bank"].split(" ")[0] for values in results})
    return f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))} with mmad-bank {', '.join(versions)}."


def with_section(readme: str, section: str) -> str:
    """Return README's text with the section between its markers replaced.

    Raises:
        ValueError: The markers are not there, or there twice.
    """
    if len(MARKERS.findall(readme)) != 1:
        raise ValueError("README.md: expected <!-- benchmarks: begin --> and <!-- benchmarks: end --> once each")
    return MARKERS.sub(lambda found: f"{found[1]}\n{section}\n\n{found[2]}", readme)


def write(path: Path, text: str) -> None:
    """Write a document whole, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"written: {path}")


def _machine(values: Mapping[str, Any]) -> str:
    machine = values["machine"]
    gpus = "".join(f", {gpu}" for gpu in machine["gpu"])
    return f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores ({machine['isa']}){gpus}"


def _settings(values: Mapping[str, Any]) -> str:
    rounds = values["settings"].get("rounds")
    how = f", medians of {rounds} interleaved rounds" if rounds else ""
    return f"Measured on {values['date'][:10]} with mmad-bank {values['versions']['mmad-bank']}{how}."


_NO_PEERS = ("mmad-bank", "python", "timm")


def _peers(results: Sequence[Mapping[str, Any]]) -> str:
    found: dict[str, list[str]] = {}
    for values in results:
        for name, version in values["versions"].items():
            if version and name not in _NO_PEERS and version not in found.setdefault(name, []):
                found[name].append(version)
    words = [f"{name} {' and '.join(versions)}" for name, versions in found.items()]
    return f"Peers: {', '.join(words)}."


def _markdown(table: Table, *, level: int) -> list[str]:
    return [f"{'#' * level} {table.title}", _grid(table.columns, table.rows), *(f"- {note}" for note in table.notes)]


def _grid(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [
        [column.heading for column in columns],
        ["---:" if column.format else "---" for column in columns],
        *([column.cell(row) for column in columns] for row in rows),
    ]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    main()
