"""Feature dumps as arguments: the options that say how they are read, the same in every command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mmad_bank.cli._swapped import check_features
from mmad_bank.cli._values import parse_list
from mmad_bank.cli._words import Axes, option

if TYPE_CHECKING:
    from mmad_bank.bank import FeatureDump

Features = Annotated[
    list[Path],
    typer.Argument(
        metavar="FEATURES...",
        help="Feature files (.npy, .npz, .safetensors, .pt) or folders of them: (N, D), (images, patches, D), or maps.",
        show_default=False,
    ),
]
Key = Annotated[str | None, option("--key")]
AxesOfMaps = Annotated[Axes, option("--axes")]
ByImage = Annotated[bool, option("--by-image")]


class Reading(NamedTuple):
    """Way in which dumps are read."""

    key: str | None = None
    axes: Axes = "auto"
    by_image: bool = False

    def open(
        self, paths: Sequence[Path], dim: int | None = None, left_out: dict[str, str] | None = None
    ) -> FeatureDump:
        """Open dumps; ``dim`` is the vectors' length, if known; ``left_out`` takes up files that cannot be used."""
        check_features(paths)
        from mmad_bank.bank import open_dump

        return open_dump(
            list(paths), key=self.keys, layout=self.axes, by_image=self.by_image, dim=dim, left_out=left_out
        )

    @property
    def keys(self) -> list[str] | None:
        """The names in ``--key``."""
        return None if self.key is None else parse_list(self.key, "--key", "names of arrays")

    def options(self) -> list[str]:
        """Return the command line's words for this."""
        words = [] if self.key is None else ["--key", self.key]
        words += [] if self.axes == "auto" else ["--axes", self.axes]
        return words + (["--by-image"] if self.by_image else [])

    def arguments(self) -> dict[str, object]:
        """Return the arguments of :func:`mmad_bank.bank.open_dump` that differ from the defaults."""
        keys = self.keys
        chosen = {"key": keys[0] if keys and len(keys) == 1 else keys, "layout": self.axes, "by_image": self.by_image}
        return {name: value for name, value in chosen.items() if value not in (None, "auto", False)}
