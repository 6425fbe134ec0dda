"""Memory banks: selected from feature dumps, searched, scored, saved."""

from mmad_bank.bank import dumps
from mmad_bank.bank.calibrating import BankCalibration, Verdicts
from mmad_bank.bank.dumps import FeatureDump, open_dump
from mmad_bank.bank.memory_bank import MemoryBank, Scores
from mmad_bank.bank.multi_bank import MultiBank
from mmad_bank.bank.provenance import Origin, Source
from mmad_bank.bank.shared import SharedBank
from mmad_bank.bank.streaming import StreamingBank

__all__ = [
    "BankCalibration", "FeatureDump", "MemoryBank", "MultiBank", "Origin", "Scores", "SharedBank", "Source",
    "StreamingBank", "Verdicts", "dumps", "open_dump",
]  # fmt: skip
