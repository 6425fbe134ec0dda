"""Docstrings' references become links, and examples the section that the site knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from snippets import DOCS

griffe = pytest.importorskip("griffe")

CODE = '''
from other import far


class Bank:
    """A bank; see :meth:`save`, :func:`build` and :class:`~mmad_bank.ops.Thing`, or :func:`far`.

    Example:
        >>> 1 + 1
        2
    """

    def save(self) -> None:
        """Undo :func:`Bank.load` and :func:`nowhere`."""

    def load(self) -> None: ...


def build() -> None: ...
'''


def test_roles_become_links(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(CODE)
    extensions = griffe.load_extensions(str(DOCS / "_pages/roles.py"))
    bank = griffe.load("shop", search_paths=[tmp_path], extensions=extensions)["Bank"]
    text = bank.docstring.value
    for identifier, title in (
        ("shop.Bank.save", "save"), ("shop.build", "build"), ("mmad_bank.ops.Thing", "Thing"), ("other.far", "far"),
    ):  # fmt: skip
        assert f'<autoref identifier="{identifier}" optional><code>{title}</code></autoref>' in text
    assert "Examples:\n    >>> 1 + 1" in text
    inner = bank["save"].docstring.value
    assert '"shop.Bank.load"' in inner
    assert '"nowhere"' in inner
    assert ":func:" not in text + inner
