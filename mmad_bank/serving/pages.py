"""The pages for people: one to try a picture on, and one that lists the routes. They load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "page"


def trial_page() -> str:
    """Return the page to try a picture on."""
    page = _read("index.html")
    return page.replace("{{style}}", _read("style.css")).replace("{{script}}", _read("page.js"))


def routes_page(description: Mapping[str, Any]) -> str:
    """Return the page that lists the routes.

    Args:
        description: The OpenAPI description.

    Example:
        >>> page = routes_page({"paths": {"/a": {"get": {"description": "Say <a>.", "responses": {}}}}})
        >>> "GET /a" in page, "Say &lt;a&gt;." in page
        (True, True)
    """
    entries = []
    for path, methods in description["paths"].items():
        for method, one in methods.items():
            parameters = [
                f"<li><code>{escape(part['name'])}</code> {escape(part.get('description', ''))}</li>"
                for part in one.get("parameters", ())
            ]
            more = f"<ul>{''.join(parameters)}</ul>" if parameters else ""
            words = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(one.get("description", "")))
            entries.append(f"<dt>{method.upper()} {escape(path)}</dt><dd>{words}{more}</dd>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        ' initial-scale=1"><title>mmad-bank: routes</title><link rel="icon" href="data:,">'
        f"<style>{_read('style.css')}</style></head>"
        '<body><header class="page"><p class="eyebrow">mmad-bank</p><h1>Routes</h1><p class="lead">The description for'
        ' programs is <a href="openapi.json">openapi.json</a>; <a href="./">a page</a> tries a picture.</p></header>'
        f'<main><dl class="routes">{"".join(entries)}</dl></main></body></html>'
    )


def policy() -> str:
    """Return the content security policy of the pages: their own style and script, and nothing else."""
    script, style = (_hash(_read(name)) for name in ("page.js", "style.css"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data: blob:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
