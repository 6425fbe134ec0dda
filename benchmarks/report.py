"""Turn result files into Markdown: all of it into docs/benchmarks.md, the headlines into README.md.

    python benchmarks/report.py benchmarks/results/*.json

Nothing in either is typed by hand. Of several results of one part on one machine the newest counts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import ROOT, SCHEMA, Column, Table, drift_table, machine_slug, machine_table, versions_table

from mmad_bank._files import replacing

MARKERS = re.compile(r"(<!-- benchmarks: ?(?:begin|start) -->\n).*?(<!-- benchmarks: ?end -->)", re.DOTALL)


def main() -> None:
    """Read the result files and write both documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    arguments = parser.parse_args()
    try:
        results = newest(read(path) for path in arguments.results)
        readme = with_section(arguments.readme.read_text(encoding="utf-8"), summary(results))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    write(arguments.docs, full(results))
    write(arguments.readme, readme)


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
    return values


def newest(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep of every part, benchmark and machine the newest result, in the order of benchmarks, machines and dates."""
    ordered = sorted(results, key=lambda values: (values["benchmark"], machine_slug(values["machine"]), values["date"]))
    latest = {(v["benchmark"], machine_slug(v["machine"]), part): v["date"] for v in ordered for part in v["parts"]}
    kept = []
    for values in ordered:
        where = values["benchmark"], machine_slug(values["machine"])
        parts = {part: t for part, t in values["parts"].items() if latest[(*where, part)] == values["date"]}
        if parts:
            kept.append(values | {"parts": parts})
    return kept


def full(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the document with all tables."""
    blocks = ["# Benchmarks", "Written by `benchmarks/report.py` from `benchmarks/results/`; do not edit by hand."]
    for values in results:
        blocks += [f"## {values['benchmark']}: {_machine(values)}", _settings(values)]
        blocks += _markdown(machine_table(values["machine"], values["ceilings"]), level=3)
        blocks += _markdown(versions_table(values["versions"]), level=3)
        for table in _tables(values):
            blocks += _markdown(table, level=3)
        if "ceilings_after" in values:
            blocks += _markdown(drift_table(values), level=3)
    return "\n\n".join(blocks) + "\n"


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the headline tables, without their details and notes."""
    blocks = []
    for values in results:
        blocks.append(f"**{_machine(values)}.** {_settings(values)} {_peers(values)}")
        for table in _tables(values):
            if table.headline:
                columns = [column for column in table.columns if not column.detail]
                blocks.append(f"*{table.title}*\n\n{_grid(columns, table.rows)}")
    blocks.append(
        "× X: how many times longer than X a row took, the median of the ratios within each round. All tables are in"
        " [docs/benchmarks.md](docs/benchmarks.md), what is measured and how in [benchmarks](benchmarks/README.md)."
    )
    return "\n\n".join(blocks)


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


def _tables(values: Mapping[str, Any]) -> list[Table]:
    return [Table.from_json(table) for tables in values["parts"].values() for table in tables]


def _machine(values: Mapping[str, Any]) -> str:
    machine = values["machine"]
    gpus = "".join(f", {gpu}" for gpu in machine["gpu"])
    return f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores ({machine['isa']}){gpus}"


def _settings(values: Mapping[str, Any]) -> str:
    rounds = values["settings"].get("rounds")
    how = f", medians of {rounds} interleaved rounds" if rounds else ""
    return f"Measured on {values['date'][:10]} with mmad-bank {values['versions']['mmad-bank']}{how}."


_NO_PEERS = ("mmad-bank", "python", "timm")


def _peers(values: Mapping[str, Any]) -> str:
    found = [f"{name} {version}" for name, version in values["versions"].items() if version and name not in _NO_PEERS]
    return f"Peers: {', '.join(found)}."


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
