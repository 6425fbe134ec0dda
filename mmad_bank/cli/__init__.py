"""The command line: ``mmad-bank``. What is heavy is imported when a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmad_bank.cli import _signals

if TYPE_CHECKING:
    from mmad_bank.cli._app import app as app


def main() -> None:
    """Run the program (the entry point ``mmad-bank``)."""
    # First of all: Ctrl-C while libraries are imported, which takes seconds, must not show a traceback.
    _signals.run(_program)


def _program() -> None:
    import io
    import sys
    import warnings

    from mmad_bank._internal.terminal import printable
    from mmad_bank.cli._app import app

    # A file's name may hold what the terminal's encoding does not: it is escaped, and no command ends for it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    # What libraries say to programmers is no message to a user, whose line is the error or the summary.
    warnings.filterwarnings("ignore", module=r"torch\.")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable(message)}\n"
    app()


def __getattr__(name: str) -> Any:
    if name == "app":
        from mmad_bank.cli._app import app

        return app
    raise AttributeError(f"module 'mmad_bank.cli' has no attribute {name!r}")
