"""Turn result files into the pages and figures of docs/benchmarks/ and the claims in README.md.

    python benchmarks/report.py benchmarks/results/*.json

No figure in them is typed by hand, nothing is measured here. There is one page per part, with the newest result of
each machine on top and the results that it replaces folded away; README's claims take the newest of all machines.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import figures
from claims import claims
from common import ROOT
from newest import newest, read
from pages import pages

from mmad_bank._internal.files import replacing
from mmad_bank.errors import MmadBankError

MARKERS = re.compile(r"(<!-- benchmarks: ?(?:begin|start) -->\n).*?(<!-- benchmarks: ?end -->)", re.DOTALL)


def main() -> None:
    """Read the result files, draw the figures, write the pages and README's section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="result files")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks", help="folder for the pages")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose section is written anew")
    arguments = parser.parse_args()
    try:
        results = [read(path) for path in arguments.results]
        before = arguments.readme.read_text(encoding="utf-8")
        with_section(before, "")  # fails before anything is written
        drawn = figures.draw(newest(results), arguments.docs / "figures")
        made = pages(results, drawn, arguments.docs, (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    except (OSError, ValueError, MmadBankError) as error:
        sys.exit(f"error: {error}")
    for figure in drawn:
        print(f"written: {figure.path}")
    for name, text in made.items():
        write(arguments.docs / name, text)
    linked = Path(os.path.relpath(arguments.docs, arguments.readme.parent)).as_posix()
    write(arguments.readme, with_section(before, "\n\n".join(claims(results, linked))))


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


if __name__ == "__main__":
    main()
