"""The pages of docs/benchmarks/: one for each part, with the newest result per machine on top, and an index.

What a part measures, how the benchmarks are run and how their figures are read stand in README.md beside this file;
the pages quote it. Everything else comes from result files.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import figures
from common import Column, Table, drift_table, machine_table, versions_table
from figures import Drawn
from newest import Result, amount, amounts, newest, of_most_data, replaced

from mmad_bank.evaluation import FUSED

TITLES = {
    "selection": "Selection", "search": "Search", "bagel": "A bank of a real category's size", "load": "Loading",
    "exactness": "Exactness", "metrics": "Metrics", "scaling": "Scaling", "tradeoff": "Memory against accuracy",
    "serving": "Serving", "overhead": "Selection over workers", "growth": "How a selection over workers grows",
    "inference": "Inference", "accuracy": "Accuracy", "readings": "Readings of the papers",
    "decisions": "Decisions", "promise": "The promised false-alarm rate",
    "papers": "The papers' tables", "bundled": "Bundled networks",
    "regions": "Regions and defects",
    "real": "Real pictures", "accelerated": "anomalib, accelerated", "runtimes": "Runtimes", "gpu": "On a GPU",
}  # fmt: skip
"""Headings of the pages, by name, in the order of the index."""
EMPTY_PAGE = "This page shows the tables of every run that is kept. None of this part is, so it shows no figures."
EMPTY = {
    "papers": "This page shows the tables of runs on MVTec 3D-AD and Eyecandies with the published weights, beside the"
    " papers' own figures. Neither data sets nor weights come with this project, and no such run is kept, so it shows"
    " no figures. `python benchmarks/methods.py papers --list` names the tables that can be run, and the papers'"
    " figures stand in `benchmarks/published/`.",
}
"""What a page says as long as no result of its part is kept."""
HEADLINES = ("inference", "accuracy", "papers", "selection", "search", "gpu")
"""Pages whose headline tables the index shows as well."""
GENERATED = (
    "<!-- Written by `python benchmarks/report.py benchmarks/results/*.json` from result files alone: do not edit. -->"
)
README_TITLES = ("Run them", "How to read it")
_NO_PEERS = ("mmad-bank", "python", "timm")


def pages(results: Sequence[dict[str, Any]], drawn: Sequence[Drawn], folder: Path, readme: str) -> dict[str, str]:
    """Return the text of every page by the name of its file.

    Args:
        results: All that were read, also replaced ones.
        drawn: The figures, of the newest ones.
        folder: Folder in which the pages will lie; figures are linked from there.
        readme: The text of benchmarks/README.md.
    """
    current, old = newest(results), replaced(results)
    made = {f"{name}.md": part_page(name, current, old, drawn, folder, readme) for name in TITLES}
    return {"index.md": index(current, drawn, folder, readme), **made}


def page_of(values: Result, part: str) -> str:
    """Return the name of the page that shows a part: those of the GPU's benchmark share one."""
    return "gpu" if values["benchmark"] == "gpu" else part


# ---------------------------------------------------------------------------------------------------------------------
# What benchmarks/README.md says


def section_of(readme: str, title: str) -> str:
    """Return the text below one of README's headings.

    Raises:
        ValueError: There is no such heading.
    """
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", readme, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"benchmarks/README.md: expected a heading '## {title}', found none")
    return found[1].strip()


def introduction_of(readme: str) -> str:
    """Return the text between README's title and its first heading."""
    return readme.partition("\n## ")[0].partition("\n")[2].strip()


def measured_by(readme: str) -> dict[str, tuple[str, str]]:
    """Return for every page what is measured and against what: the rows of README's table."""
    section = section_of(readme, "What is measured")
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    return {name: (job, peers) for name, job, peers in rows}


# ---------------------------------------------------------------------------------------------------------------------
# The index


def index(current: Sequence[dict[str, Any]], drawn: Sequence[Drawn], folder: Path, readme: str) -> str:
    """Return the page with the main figures and headline tables, what is measured, and how to run and read it."""
    blocks = ["# Benchmarks", GENERATED, introduction_of(readme), "## What is measured"]
    rows = [["page", "the job", "against"], ["---"] * 3]
    for name, (job, peers) in measured_by(readme).items():
        rows.append([f"[{TITLES[name]}]({name}.md)", job, peers])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    blocks += [table, "## Newest figures", *headlines(current, drawn, folder)]
    for title in README_TITLES:
        blocks += [f"## {title}", section_of(readme, title)]
    return "\n\n".join(blocks) + "\n"


def headlines(current: Sequence[dict[str, Any]], drawn: Sequence[Drawn], folder: Path) -> list[str]:
    """Return the main figure and the headline tables of the newest results of all machines, without details."""
    shown = of_most_data(newest(current, anywhere=True))
    owners = {figures.owner(values, part) for values in shown for part in values["parts"]}
    blocks = [picture(one, folder) for one in drawn if one.main and one.owner in owners]
    for heading, own in by_machine(shown).items():
        tables = _headline_tables(own)
        if any(table.rows for _, table in tables):
            blocks.append(f"**{heading}.** {_dates(own)} {_peers(own)}")
        for name, table in tables:
            columns = [column for column in table.columns if not column.detail and column.key != "result"]
            rows = [row for row in table.rows if row.get("result", FUSED) == FUSED]
            rows = [row for row in rows if any(row.get(column.key) is not None for column in columns[1:])]
            if rows:
                blocks.append(f"*{table.title}* ([{TITLES[name]}]({name}.md))\n\n{grid(columns, rows)}")
    return [*blocks, "× X: how many times longer than X a row took, the median of the ratios within each round."]


def _headline_tables(results: Sequence[Result]) -> list[tuple[str, Table]]:
    """Return the tables that the index shows, each with its page's name; those of one title are put together."""
    found = [
        (page_of(values, part), Table.from_json(table))
        for values in results
        for part, tables in values["parts"].items()
        for table in tables
    ]
    names = dict.fromkeys(name for name, _ in found if name in HEADLINES)
    return [
        (name, table)
        for name in names
        for table in joined(table for own, table in found if own == name and table.headline)
    ]


def _dates(results: Sequence[Result]) -> str:
    days = sorted({values["date"][:10] for values in results})
    versions = sorted({values["versions"]["mmad-bank"].split(" ")[0] for values in results})
    return f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))} with mmad-bank {', '.join(versions)}."


def _peers(results: Sequence[Result]) -> str:
    found: dict[str, list[str]] = {}
    for values in results:
        for name, version in values["versions"].items():
            if version and name not in _NO_PEERS and version not in found.setdefault(name, []):
                found[name].append(version)
    words = [f"{name} {' and '.join(versions)}" for name, versions in found.items()]
    return f"Peers: {', '.join(words)}."


# ---------------------------------------------------------------------------------------------------------------------
# A part's page


def part_page(
    name: str,
    current: Sequence[dict[str, Any]],
    old: Sequence[dict[str, Any]],
    drawn: Sequence[Drawn],
    folder: Path,
    readme: str,
) -> str:
    """Return a page: for every machine its figures and tables; replaced results are folded away below them."""
    job, peers = measured_by(readme)[name]
    against = "" if peers == "–" else f" It is measured against: {peers}."
    blocks = [f"# {TITLES[name]}", GENERATED, f"The job: {job}.{against} [How to read it](index.md#how-to-read-it)."]
    before, now = by_machine(_only(old, name)), by_machine(_only(current, name))
    blocks += [] if now else [f"{EMPTY.get(name, EMPTY_PAGE)} [How to run it](index.md#run-them)."]
    for heading, own in now.items():
        blocks.append(f"## {heading}")
        owners = {figures.owner(values, part) for values in own for part in values["parts"]}
        blocks += [picture(one, folder) for one in drawn if one.owner in owners]
        blocks += _tables(own, 3)
        blocks += ["### How it was measured", *(block for values in own for block in _measured(values))]
        for values in before.get(heading, []):
            told = f"Earlier or smaller result: {values['date'][:10]}{_size(values)}"
            blocks += fold(told, [*_measured(values), *_tables([values], None)])
    return "\n\n".join(blocks) + "\n"


def _only(results: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the results with the parts of a page alone: most data and newest first."""
    own = [
        values | {"parts": {part: tables for part, tables in values["parts"].items() if page_of(values, part) == name}}
        for values in results
    ]
    found = [values for values in own if values["parts"]]
    return sorted(found, key=lambda v: ([amounts(v, part) for part in v["parts"]], v["date"]), reverse=True)


def by_machine(results: Iterable[Result]) -> dict[str, list[Any]]:
    """Sort results by the words for their machine; the one with the newest result comes first."""
    found: dict[str, list[Any]] = {}
    for values in results:
        found.setdefault(machine_words(values), []).append(values)
    newest_first = sorted(found, key=lambda words: max(values["date"] for values in found[words]), reverse=True)
    return {words: found[words] for words in newest_first}


def machine_words(values: Result) -> str:
    """Return a machine as a heading: processor, threads, instruction set, GPUs, and the device if it is one of them."""
    machine = values["machine"]
    gpus = "".join(f", {gpu}" for gpu in machine["gpu"])
    device = values.get("settings", {}).get("device") or "cpu"
    on = "" if device == "cpu" else f", on {device}"
    return f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores ({machine['isa']}){gpus}{on}"


def _size(values: Result) -> str:
    """Say over how much a result was measured, where that differs between results."""
    names = [name for part in values["parts"] for name in _SIZES.get(part, ())]
    return "".join(f", {amount(values, name)} {name}" for name in names)


_SIZES = {"accuracy": ("seeds",), "inference": ("images",)}


def _tables(results: Sequence[Result], level: int | None) -> list[str]:
    """Return the tables of a part: headline tables on top, the others folded; all in the open without a level."""
    tables = joined(Table.from_json(t) for values in results for found in values["parts"].values() for t in found)
    open_ones = [table for table in tables if table.headline] or tables[:1]
    blocks = []
    for table in sorted(tables, key=lambda table: not any(table is one for one in open_ones)):
        if level is None:
            blocks += [f"**{table.title}**", *body(table)]
        elif any(table is one for one in open_ones):
            blocks += [f"{'#' * level} {table.title}", *body(table)]
        else:
            blocks += fold(table.title, body(table))
    return blocks


def _measured(values: Result) -> list[str]:
    """Say when and with what a result was measured, the command that does it again, and on what machine."""
    rounds = values["settings"].get("rounds")
    how = f", medians of {rounds} interleaved rounds" if rounds else ""
    tables = [machine_table(values["machine"], values["ceilings"]), versions_table(values["versions"])]
    if "ceilings_after" in values:
        tables.append(drift_table(values))
    facts = [block for table in tables for block in (f"**{table.title}**", *body(table))]
    return [
        f"Measured on {values['date'][:10]} with mmad-bank {values['versions']['mmad-bank']}{how}.{_busy(values)}"
        " Measure again:",
        f"```sh\n{command(values)}\n```",
        *fold("Machine and versions", facts),
    ]


def _busy(values: Result) -> str:
    """Say so where the machine had other work when a run began: one process more than it has cores."""
    load, cores = values["machine"]["load_average"], values["machine"]["cores"]
    if load < cores + 1:
        return ""
    return (
        f" The machine had other work (load average {load:.1f} on {cores} cores at the start): times are longer than on"
        " an idle one, and ratios within a run say more."
    )


def command(values: Result) -> str:
    """Return the command that measures a result again."""
    parts = [name for name in values["parts"] if name != "targets"]  # the GPU's benchmark gathers them: no part of it
    words = ["python", f"benchmarks/{values['benchmark']}.py", *parts]
    for name, value in values["settings"].items():
        if name in ("quick", "parts") or value is None or value is False:
            continue
        given = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, given)]
    if values["benchmark"] != "gpu":
        words += ["--threads", str(values["machine"]["threads"])]
    return shlex.join([*words, "--json", "benchmarks/results"])


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def joined(tables: Iterable[Table]) -> list[Table]:
    """Put tables of one title and columns under each other: runs of one part with different contestants."""
    found: dict[tuple[str, str], Table] = {}
    for table in tables:
        key = table.title, repr(table.columns)
        if key in found:
            found[key].rows += table.rows
            found[key].notes += [note for note in table.notes if note not in found[key].notes]
        else:
            found[key] = replace(table, rows=list(table.rows), notes=list(table.notes))
    return list(found.values())


def body(table: Table) -> list[str]:
    """Return a table without its title, and its notes as a list."""
    notes = "\n".join(f"- {note}" for note in table.notes)
    return [grid(table.columns, table.rows), *([notes] if notes else [])]


def grid(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    lines = [
        [column.heading for column in columns],
        ["---:" if column.format else "---" for column in columns],
        *([column.cell(row) for column in columns] for row in rows),
    ]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def fold(summary: str, blocks: Iterable[str]) -> list[str]:
    """Return blocks that a reader unfolds, on GitHub as well as in MkDocs."""
    return ['<details markdown="1">\n<summary>' + escape(summary, quote=False) + "</summary>", *blocks, "</details>"]


def picture(drawn: Drawn, folder: Path) -> str:
    """Return a figure as Markdown, linked from a folder."""
    return f"![{drawn.alt}]({Path(os.path.relpath(drawn.path, folder)).as_posix()})"
