"""Common parts of the methods whose banks all have one grid, beside :mod:`mmad_bank.methods.bank_method`."""

from __future__ import annotations

from dataclasses import dataclass

from mmad_bank.methods.bank_method import BankMethod
from mmad_bank.methods.options import GridOptions


@dataclass(kw_only=True, eq=False, repr=False)
class OneGridMethod(BankMethod, GridOptions):
    """A method with banks that all score patches of one grid."""

    def _grid(self, bank: str) -> tuple[int, int]:
        del bank
        return self.grid
