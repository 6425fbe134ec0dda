"""The HTTP service: models of a folder behind the Open Inference Protocol, and behind a door for pictures' files.

Importing the package is light; FastAPI and uvicorn (the extra ``serve``) are needed for :func:`create_app` and
:func:`run` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {"Settings": "settings", "create_app": "app", "run": "running"}
__all__ = ["Settings", "create_app", "run"]

if TYPE_CHECKING:
    from mmad_bank.serving.app import create_app
    from mmad_bank.serving.running import run
    from mmad_bank.serving.settings import Settings

__getattr__, __dir__ = lazily(__name__, _EXPORTS)
