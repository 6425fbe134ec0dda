"""Feature dumps as arguments: the options that say how they are read, the same in every command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from mmad_bank.cli._swapped import check_features
from mmad_bank.errors import InputError

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
Key = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Arrays to take from files that hold several; several layers are joined on the largest grid.",
        show_default=False,
    ),
]
DumpLayout = Annotated[
    Literal["auto", "rows", "bchw", "bhwc"],
    typer.Option("--layout", help="Axes of maps: images × channels × height × width, or channels last."),
]
ByImage = Annotated[
    bool, typer.Option("--by-image", help="Every array of a file is one image, named by its key in the file.")
]


class Reading(NamedTuple):
    """How dumps are read."""

    key: str | None = None
    layout: Literal["auto", "rows", "bchw", "bhwc"] = "auto"
    by_image: bool = False

    def open(
        self, paths: Sequence[Path], dim: int | None = None, left_out: dict[str, str] | None = None
    ) -> FeatureDump:
        """Open dumps; ``dim`` is the vectors' length, if known; ``left_out`` takes up files that cannot be used."""
        check_features(paths)
        from mmad_bank.bank import open_dump

        return open_dump(
            list(paths), key=self.keys, layout=self.layout, by_image=self.by_image, dim=dim, left_out=left_out
        )

    @property
    def keys(self) -> list[str] | None:
        """The names in ``--key``."""
        if self.key is None:
            return None
        names = [name.strip() for name in self.key.split(",") if name.strip()]
        if not names:
            raise InputError(f"--key: expected names of arrays joined by commas, found {self.key!r}")
        return names

    def options(self) -> list[str]:
        """Return the command line's words for this."""
        words = [] if self.key is None else ["--key", self.key]
        words += [] if self.layout == "auto" else ["--layout", self.layout]
        return words + (["--by-image"] if self.by_image else [])

    def arguments(self) -> dict[str, object]:
        """Return the arguments of :func:`mmad_bank.bank.open_dump` that differ from the defaults."""
        keys = self.keys
        chosen = {"key": keys[0] if keys and len(keys) == 1 else keys, "layout": self.layout, "by_image": self.by_image}
        return {name: value for name, value in chosen.items() if value not in (None, "auto", False)}
