"""Text for a terminal: names of files, folders and images are strangers', and may hold what steers it."""

from __future__ import annotations

import re
import sys

# Control characters; line and paragraph separators; what changes the direction in which the rest is shown; halves of
# characters, which no encoding takes.
_STEERING = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def printable(text: object) -> str:
    """Return text on one line, with everything escaped that would steer a terminal or feign other lines.

    Files of results keep names as they are.

    Example:
        >>> print(printable("part\\x1b[2J\\n7.png"))
        part\\x1b[2J\\n7.png
    """
    return _STEERING.sub(_escaped, str(text))


def say(line: str) -> None:
    """Print a line on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return _SHORT.get(found[0]) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
