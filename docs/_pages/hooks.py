"""Pages of the site that are made from the code when it is built: the commands, the methods' parameters and figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import commands
import method_figures
import parameters

_COMMANDS = "reference/commands/"  # its place in the navigation, in mkdocs.yml


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and put the commands' into the navigation."""
    pages = {f"{_COMMANDS}index.md": commands.overview()}
    pages |= {f"{_COMMANDS}{name}.md": commands.page(name) for name in commands.names()}
    pages["reference/parameters.md"] = parameters.page()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    _name_commands(config.nav)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put figures into the methods' pages."""
    return method_figures.insert(markdown)


def _name_commands(nav: Any) -> None:
    """Put a line for each command in place of their folder."""
    for entry in nav if isinstance(nav, list) else []:
        for title, below in entry.items() if isinstance(entry, dict) else []:
            if below == _COMMANDS:
                entry[title] = [f"{_COMMANDS}index.md", *({name: f"{_COMMANDS}{name}.md"} for name in commands.names())]
            _name_commands(below)
