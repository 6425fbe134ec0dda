"""The same selection, search and scoring on several processes or machines, on Ray (the extra ``ray``).

Importing the package is light; Ray is needed for work only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {
    "Plan": "planning", "ShardedBank": "sharded_bank", "build": "building", "extend": "extending",
    "measure_pace": "pace", "plan": "planning", "selecting_over": "building",
}  # fmt: skip
__all__ = ["Plan", "ShardedBank", "build", "extend", "measure_pace", "plan", "selecting_over"]

if TYPE_CHECKING:
    from mmad_bank.distributed.building import build, selecting_over
    from mmad_bank.distributed.extending import extend
    from mmad_bank.distributed.pace import measure_pace
    from mmad_bank.distributed.planning import Plan, plan
    from mmad_bank.distributed.sharded_bank import ShardedBank

__getattr__, __dir__ = lazily(__name__, _EXPORTS)
