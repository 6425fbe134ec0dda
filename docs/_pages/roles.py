"""Docstrings of the code, which name things as Sphinx does, as Markdown with links."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:$", flags=re.MULTILINE)  # griffe knows the section as "Examples:"
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Put links for roles such as ``:func:`knn``` in docstrings."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Change an object's docstring once all of the package is loaded."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(lambda role: _link(role, obj), text)


def _link(role: re.Match[str], obj: griffe.Object) -> str:
    """Return a link that is plain code where its target stands on no page."""
    short, name = role.groups()
    path = name if name.startswith("mmad_bank") else _resolve(name, obj)
    return f'<autoref identifier="{path}" optional><code>{name.rsplit(".", 1)[-1] if short else name}</code></autoref>'


def _resolve(name: str, obj: griffe.Object) -> str:
    """Return the path of a name that is meant as seen from an object: within its class, its module, or above."""
    first, *rest = name.split(".")
    scope: griffe.Object | None = obj
    while scope is not None:
        if first in scope.members:
            member = scope.members[first]
            return ".".join([member.target_path if member.is_alias else member.path, *rest])
        scope = scope.parent
    return name
