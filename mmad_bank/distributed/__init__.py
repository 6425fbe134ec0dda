"""The same selection, search and scoring on several processes or machines, on Ray (the extra ``ray``).

Importing the package is light; Ray is needed for work only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {"build": "building", "extend": "extending", "selecting_over": "building"}
__all__ = ["build", "extend", "selecting_over"]

if TYPE_CHECKING:
    from mmad_bank.distributed.building import build, selecting_over
    from mmad_bank.distributed.extending import extend

__getattr__, __dir__ = lazily(__name__, _EXPORTS)
