"""AST (Rudolph et al. 2023): the method, its teacher (a normalizing flow), its student, and the depth they look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

_EXPORTS = {
    "AST": "method",
    "Depth": "depth",
    "Flow": "flow",
    "Student": "student",
    "position_map": "position",
    "train_student": "training",
    "train_teacher": "training",
}
__all__ = [
    "AST",
    "Depth",
    "Flow",
    "Student",
    "position_map",
    "train_student",
    "train_teacher",
]

if TYPE_CHECKING:
    from mmad_bank.methods.ast.depth import Depth
    from mmad_bank.methods.ast.flow import Flow
    from mmad_bank.methods.ast.method import AST
    from mmad_bank.methods.ast.position import position_map
    from mmad_bank.methods.ast.student import Student
    from mmad_bank.methods.ast.training import train_student, train_teacher

_SUBMODULES = ("depth", "flow", "method", "position", "student", "training")
__getattr__, __dir__ = lazily(__name__, _EXPORTS, submodules=_SUBMODULES)
