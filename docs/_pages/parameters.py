"""The page of the methods' parameters, from what is declared with them."""

from __future__ import annotations

import re
from typing import Any

from mmad_bank import methods

_HEAD = """# Methods' parameters

Every argument of every method's constructor: its type, its range or choices, its default, and what it does. In Python
they are keyword arguments, `M3DM(grid=(56, 56))`. In the shell they are values of `--set`, as in
`mmad-bank fit m3dm DATASET --out MODEL --set grid=56,56`. There dashes may stand for underscores, lists are
comma-separated, `none` is None, and shares may be written as percentages. `seed` and `device` have options of their
own, `--seed` and `--device`.

*Bundled* is the value that `--bundled` puts in, where it is another one.
"""


def page() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *(_section(name) for name in methods.names())])


def _section(name: str) -> str:
    method = methods.method_class(name)
    bundled = method.bundled_arguments()
    lines = [f"## {method.__name__}", "", f"[What it is and how to run it](../methods/{name}.md).", ""]
    lines += ['<div class="described" markdown="1">', ""]
    lines += ["| argument | type | range or choices | default | bundled | effect |", f"|{' --- |' * 6}"]
    for one in methods.parameters(name):
        other = bundled.get(one.name, one.default)
        choices = ", ".join(f"`{choice}`" for choice in one.choices)
        cells = [f"`{one.name}`", one.type, choices or one.limits, _value(one.default)]
        cells += [_value(other) if other != one.default else "", _sentence(one.documentation)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, "", "</div>", ""])


def _sentence(text: str) -> str:
    """Put a docstring's text into Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return text[:1].upper() + text[1:]


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"`{','.join(map(str, value))}`"
    return f"`{'none' if value is None else value}`"
