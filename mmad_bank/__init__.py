"""mmad-bank: memory-bank anomaly detection at the speed of the machine's matrix units.

Importing the package is light: submodules load when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmad_bank._internal.lazy import lazily

__version__ = "0.1.0"

_EXPORTS = {"MemoryBank": "bank", "MultiBank": "bank", "StreamingBank": "bank"}
_SUBMODULES = (
    "adaptation", "bank", "bench", "calibration", "cli", "data", "demo", "distributed", "errors", "evaluation",
    "exporting", "extraction", "features", "fusion", "integrations", "methods", "metrics", "monitoring", "ops",
    "report", "scoring", "serving", "synthetic", "tuning",
)  # fmt: skip
__all__ = [
    "MemoryBank", "MultiBank", "StreamingBank", "__version__", "adaptation", "bank", "bench", "calibration", "cli",
    "data", "demo", "distributed", "errors", "evaluation", "exporting", "extraction", "features", "fusion",
    "integrations", "methods", "metrics", "monitoring", "ops", "report", "scoring", "serving", "synthetic", "tuning",
]  # fmt: skip

if TYPE_CHECKING:
    from mmad_bank import (
        adaptation,
        bank,
        bench,
        calibration,
        cli,
        data,
        demo,
        distributed,
        errors,
        evaluation,
        exporting,
        extraction,
        features,
        fusion,
        integrations,
        methods,
        metrics,
        monitoring,
        ops,
        report,
        scoring,
        serving,
        synthetic,
        tuning,
    )
    from mmad_bank.bank import MemoryBank, MultiBank, StreamingBank

__getattr__, __dir__ = lazily(__name__, _EXPORTS, submodules=_SUBMODULES)
