"""What ``info`` says of a file of a shared part: which it is, of what sizes, and what it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmad_bank.cli._output import size

if TYPE_CHECKING:
    from mmad_bank.methods.shareable import SharedPart


def describe_part(path: Path) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Describe a file that train-uff, train-adaptors or train-sdf writes, or a model keeps, by its header.

    Returns:
        JSON-able values, and the same for people; None if the file is none of those, or truncated.

    Raises:
        FormatError: It is altered.
    """
    from mmad_bank.features.factory import in_words
    from mmad_bank.methods.part_files import read_part_file
    from mmad_bank.methods.shareable import sizes_in_words

    found = read_part_file(path)
    if found is None:
        return None
    part, trained_on, n_bytes = found.part, found.trained_on, path.stat().st_size
    facts = {
        "file": str(path), "part": part.name, "method": found.method.name, **found.sizes,
        **({"adaptor": found.kind} if found.kind else {}), "values": found.n_values,
        "trained_on": None if trained_on is None else trained_on.as_json(), "bytes": n_bytes,
    }  # fmt: skip
    rows = {
        "holds": f"{part.words} of {found.method.__name__}" + (f", {found.kind}" if found.kind else ""),
        "made for": sizes_in_words(found.sizes),
        "trained on": "the file does not say" if trained_on is None else trained_on.in_words(),
        "extractors": in_words(trained_on.features) if trained_on else "",
        "size": f"{found.n_values:,} values, {size(n_bytes)}",
        "taken by": taken_by(part, path),
        "checksums": "the file has none",
    }
    return facts, {row: words for row, words in rows.items() if words}


def taken_by(part: SharedPart, path: Path) -> str:
    """Word the commands that take a part's file."""
    from mmad_bank.methods import method_class, names

    takers = [name for name in names() if part in method_class(name).shareable]
    return f"mmad-bank fit {' or '.join(takers)} --set {part.argument.replace('_', '-')}={path}"
