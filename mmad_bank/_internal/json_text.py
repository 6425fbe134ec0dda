"""JSON for files that people read."""

from __future__ import annotations

import json
from typing import Any


def json_text(content: Any) -> str:
    """Return indented JSON for a UTF-8 file, without NaN, that reads back as what it was.

    Names of all languages stand as they are. A file's name that is no UTF-8 has no characters that a UTF-8 file could
    hold; where there is one, all but ASCII is escaped.

    Example:
        >>> print(json_text({"name": "é"}), end="")
        {
          "name": "é"
        }
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    return text
