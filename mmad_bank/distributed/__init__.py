"""The same selection, search and scoring on several processes or machines, on Ray (the extra ``ray``).

Importing the package is light; Ray is needed for work only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {"ShardedBank": "sharded_bank"}
__all__ = ["ShardedBank"]

if TYPE_CHECKING:
    from mmad_bank.distributed.sharded_bank import ShardedBank

__getattr__, __dir__ = lazily(__name__, _EXPORTS)
