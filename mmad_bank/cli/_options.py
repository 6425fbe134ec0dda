"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmad_bank.cli._words import FolderLayout, LengthUnit, Reweighting, Runtime, option

Json = Annotated[bool, option("--json")]
Overwrite = Annotated[bool, option("--overwrite")]
Device = Annotated[str, option("--device")]
TrustIndex = Annotated[bool, option("--trust-index")]
DatasetFolder = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Folder of the categories, raw or prepared.", show_default=False)
]
Learned = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATASET...",
        help="Folder of the categories, raw or prepared; or good pictures: a folder of them, files, a list of paths"
        " (.txt), a pattern in quotes.",
        show_default=False,
    ),
]
RawFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the raw categories.", show_default=False)]
Categories = Annotated[str | None, option("--categories", "all")]
Layout = Annotated[FolderLayout, option("--layout")]
Units = Annotated[LengthUnit | None, option("--units", "m; a cloud that spans more than 10 is refused then")]
ModelUnits = Annotated[LengthUnit | None, option("--units", "the model's")]
Workers = Annotated[int | None, option("--workers", "one per core")]
RayWorkers = Annotated[int | None, option("--workers", "the work is done in this one; several need the extra ray")]
Address = Annotated[str | None, option("--address")]
Scratch = Annotated[Path | None, option("--scratch")]
Batch = Annotated[int, option("--batch")]
Patches = Annotated[int | None, option("--patches")]
Reweight = Annotated[Reweighting, option("--reweight")]
FailOnBad = Annotated[bool, option("--fail-on-bad")]
_USUAL_RATE = "1 %, or the smallest that can be promised"
ModelRate = Annotated[str | None, option("--false-alarm-rate", f" (default: the model's; without one {_USUAL_RATE})")]
ModelRuntime = Annotated[Runtime | None, option("--runtime")]
CalibrationRate = Annotated[
    str | None, option("--false-alarm-rate", "; its threshold is told beside those at 10, 5, 1 and 0.1 %")
]
ScoreRate = Annotated[
    str | None,
    option("--false-alarm-rate", f" (default: no verdicts; with --fail-on-bad {_USUAL_RATE})"),
]
ProjectionDim = Annotated[str | None, option("--projection-dim")]
ResultsFile = Annotated[Path | None, option("--out", "JSON file", ", with all results")]
