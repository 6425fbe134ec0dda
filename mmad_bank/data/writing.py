"""Images, clouds and maps written to files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.files import replacing
from mmad_bank.data._images import DESCRIPTION


def write_png(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Write (H, W, 3) or (H, W) uint8, whole or not at all."""
    with replacing(path) as partial:
        encode_png(partial, values)


def encode_png(path: Path, values: np.ndarray, tag: str | None = None) -> None:
    """Write (H, W, 3) or (H, W) uint8 into the file that is there, with a description."""
    image_module = import_extra("pillow", "PIL.Image", "writing images")
    text = import_extra("pillow", "PIL.PngImagePlugin", "writing images").PngInfo()
    if tag is not None:
        text.add_text(DESCRIPTION, tag)
    # Weak compression: three times as fast as the default for files a tenth larger.
    image_module.fromarray(values).save(path, format="PNG", compress_level=1, pnginfo=text)


def write_xyz(path: str | os.PathLike[str], values: np.ndarray, tag: str | None = None) -> None:
    """Write (H, W, 3) float32 as TIFF with a description, whole or not at all."""
    with replacing(path) as partial:
        encode_xyz(partial, values, tag)


def encode_xyz(path: Path, values: np.ndarray, tag: str | None = None) -> None:
    """Write (H, W, 3) float32 as TIFF with a description into the file that is there."""
    tifffile = import_extra("tifffile", "tifffile", "writing point clouds")
    tifffile.imwrite(path, values.astype(np.float32), photometric="rgb", description=tag, metadata=None)


def write_map(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Write (H, W) float32 as TIFF, whole or not at all; its folder is made."""
    tifffile = import_extra("tifffile", "tifffile", "writing anomaly maps")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        tifffile.imwrite(partial, values.astype(np.float32), photometric="minisblack", metadata=None)
